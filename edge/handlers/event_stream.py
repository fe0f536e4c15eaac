"""Server-sent events straight into the transport: the one place that writes raw bytes.

aiohttp writes the headers and the end; everything between is framed here and handed to the
transport without awaiting, so that a token costs no task switch. In exchange this file bounds what
a client that reads too slowly leaves behind; one that reads nothing is the connection's to drop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

from aiohttp import HttpVersion11, web

from edge.config import EdgeConfig
from edge.openai.sse import CONTENT_TYPE, KEEP_ALIVE

# How often a handler that waits for its next event calls `tick`.
TICK_SECONDS: Final = 5.0


class _EventResponse(web.StreamResponse):
    # Headers leave with the first event: one packet less before the first token.
    _send_headers_immediately = False


class EventStream:
    """One response of type text/event-stream.

    Args:
        request: That it answers.
        config: Its limits.
    """

    def __init__(self, request: web.Request, config: EdgeConfig) -> None:
        self._request = request
        self._config = config
        self._response = _EventResponse(
            headers={
                "content-type": CONTENT_TYPE,
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
        )
        self._chunked = request.version >= HttpVersion11
        self._last_write = 0.0
        self._largest_write = 0

    async def open(self, first: bytes) -> web.StreamResponse:
        """Sends status, headers and the first events."""
        # With nothing to say yet, nothing would take the headers along.
        self._response._send_headers_immediately = not first
        await self._response.prepare(self._request)
        if first:
            await self._response.write(first)
        self._last_write = time.monotonic()
        return self._response

    def write(self, data: bytes) -> None:
        """Sends more events; never waits.

        A client too far behind is dropped. What was sent at once does not count, since nobody can
        have read it already: it may be behind by the largest write and the configured bound.
        """
        transport = self._request.transport
        if not data or transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._config.max_pending_bytes + self._largest_write:
            transport.abort()
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        transport.write(data)
        self._largest_write = max(self._largest_write, len(data))
        self._last_write = time.monotonic()

    async def send(self, pieces: Iterable[bytes]) -> None:
        """Sends events of megabytes, each in pieces, no faster than the client reads."""
        for piece in pieces:
            await self._response.write(piece)
            self._largest_write = max(self._largest_write, len(piece))
            self._last_write = time.monotonic()
            # A fast client never makes the write wait, and others want their turn.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Ends the body; the connection can be used again."""
        await self._response.write_eof()

    def tick(self) -> None:
        """To be called every few seconds: keeps proxies awake."""
        silence = self._config.sse_keepalive_seconds
        if silence and time.monotonic() - self._last_write >= silence:
            self.write(KEEP_ALIVE)
