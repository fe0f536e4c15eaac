"""Writes server-sent events directly to the transport; no other module writes raw bytes.

aiohttp sends the headers, the first events and the end. All other events are framed here and
written to the transport without awaiting, so that a token costs no task switch.

Two kinds of output share one stream. Text is small: `write` sends it at once, and a client that
reads too slowly is disconnected. Images are megabytes: `write` queues them, and `send_queued`
sends them one after another, no faster than the client reads. While anything is queued, later
output is queued behind it, so the order is kept. Output is queued as well until `open` has sent
the headers. http_protocol.py disconnects a client that reads nothing at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from aiohttp import HttpVersion11, web

from contract.memory import SMALL_BYTES
from edge.config import EdgeConfig
from edge.openai.pieces import LargeEvent, Output, encoded
from edge.openai.sse import CONTENT_TYPE, KEEP_ALIVE
from edge.state import EdgeRequest

# Seconds between calls of `tick` while the runner waits for output.
TICK_SECONDS: Final = 5.0
# Bytes of queued previews in one response; beyond it older previews of an image are dropped.
_MAX_PREVIEW_BYTES: Final = 16 * 1024 * 1024


class EventStream:
    """One response of type text/event-stream.

    Args:
        request: The HTTP request.
        config: `max_pending_bytes` and `sse_keepalive_seconds` bound it.
    """

    def __init__(self, request: EdgeRequest, config: EdgeConfig) -> None:
        self._request = request
        self._connection = request.connection
        # Whether queued bytes count in the memory budget; those of a last error do not.
        self._counted = True
        self._keepalive_seconds = config.sse_keepalive_seconds
        self._max_pending_bytes = config.max_pending_bytes
        self._transport = request.transport
        self._response = web.StreamResponse(
            headers={
                "content-type": CONTENT_TYPE,
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
        )
        self._chunked = request.version >= HttpVersion11
        self._queue: deque[Output] = deque()
        # Whether small output may be written at once: the headers are sent and nothing is queued.
        self._direct = False
        self._last_write = 0.0
        self._largest_write = 0

    async def open(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Sends the 200, its headers and the small output so far.

        Raises:
            ConnectionError: The client has disconnected.
        """
        first = self._take_small()
        self._response.headers.update(headers)
        # One packet has the headers and the first events; without events they are sent alone.
        self._response._send_headers_immediately = not first
        await self._response.prepare(self._request)
        if first:
            await self._response.write(first)
        self._last_write = time.monotonic()
        rest = self._take_small()
        self._direct = True
        self.write(rest)
        self._direct = not self._queue
        return self._response

    def write(self, output: Output) -> None:
        """Sends or queues output; never blocks. A client that is too far behind is disconnected.

        The limit is `max_pending_bytes` plus the largest single write, because a client cannot
        read any part of a write before all of it is written.

        Raises:
            MemorySpentError: The memory budget has no room for a large event.
        """
        if not self._direct or not isinstance(output, bytes):
            if output:
                self._enqueue(output)
            return
        transport = self._transport
        if not output or transport is None or transport.is_closing():
            return
        unsent = transport.get_write_buffer_size()
        if unsent and (
            unsent > self._max_pending_bytes + self._largest_write
            or (unsent > SMALL_BYTES and not self._connection.count_unsent())
        ):
            transport.abort()
            return
        if self._chunked:
            output = b"%x\r\n%b\r\n" % (len(output), output)
        transport.write(output)
        if len(output) > self._largest_write:
            self._largest_write = len(output)
        self._last_write = time.monotonic()

    def _enqueue(self, output: Output) -> None:
        self._direct = False
        if isinstance(output, bytes):
            self._count(len(output))
        elif self._counted:
            self._connection.holding.add(len(output))
        if isinstance(output, LargeEvent) and output.preview_of is not None:
            self._drop_older_previews(output.preview_of)
        self._queue.append(output)

    async def send_queued(self) -> None:
        """Sends the queued output, no faster than the client reads.

        Raises:
            ConnectionError: The client has disconnected.
        """
        while self._queue:
            output = self._queue.popleft()
            for data in encoded([output] if isinstance(output, bytes) else output.pieces):
                await self._response.write(data)
                self._largest_write = max(self._largest_write, len(data))
                self._last_write = time.monotonic()
                # A fast client never makes the write wait, so let other requests run here.
                await asyncio.sleep(0)
            self._count(-len(output))
        self._direct = True

    def drop_queued(self) -> None:
        """Drops the queued output, because an error will end the stream."""
        self._count(-sum(map(len, self._queue)))
        self._queue.clear()
        self._counted = False

    def _count(self, size: int) -> None:
        if self._counted:
            self._connection.holding.count(size)

    async def close(self) -> None:
        """Ends the body; the connection can be used again."""
        await self._response.write_eof()

    def tick(self) -> None:
        """Sends a comment after `sse_keepalive_seconds` without a byte: proxies stay connected."""
        silence = self._keepalive_seconds
        if silence and time.monotonic() - self._last_write >= silence:
            self.write(KEEP_ALIVE)

    def _take_small(self) -> bytes:
        """Takes the queue's small output before its first large event."""
        taken = []
        while self._queue and isinstance(output := self._queue[0], bytes):
            taken.append(output)
            self._queue.popleft()
            self._count(-len(output))
        return b"".join(taken)

    def _drop_older_previews(self, image: int) -> None:
        """Drops queued previews of an image if all previews together exceed their bound."""
        previews = [
            event
            for event in self._queue
            if isinstance(event, LargeEvent) and event.preview_of is not None
        ]
        if sum(map(len, previews)) > _MAX_PREVIEW_BYTES:
            for event in previews:
                if event.preview_of == image:
                    self._queue.remove(event)
                    self._count(-len(event))
