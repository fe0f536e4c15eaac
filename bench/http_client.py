"""An HTTP/1.1 connection of the load client, with little work for each chunk.

It reads chunked bodies, bodies of known length and bodies that end with the connection. In
server-sent events it finds only what it counts: deltas with content, errors and the end. All events
of one read are counted together.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

# Text of a delta: `content` of a chat, `text` of a completion. Empty ones, which open and close a
# stream, are not counted.
_CONTENT: Final = re.compile(rb'"(?:content|text)":\s?"((?:[^"\\]+|\\.)+)"')
_USAGE: Final = re.compile(rb'"completion_tokens":\s?(\d+)')
_ERROR: Final = re.compile(rb'"error":\s?\{')
# Values of Connection._remaining for bodies of unknown length.
_UNTIL_CLOSE: Final = -1
_CHUNKED: Final = -2


@dataclass
class Totals:
    """Counts over all connections; times in seconds.

    Attributes:
        requests: Requests whose responses were complete and without error.
        chunks: Events with content.
        tokens: Words in their content, where content without a space is one word; or the tokens
            of the usage.
        received_bytes: Bytes of heads and bodies.
        first: For each request, the time to its first content.
        gaps: Times between two reads with content of one stream.
        whole: For each request, the time to the end of its response.
        errors: Number of errors, by description.
    """

    requests: int = 0
    chunks: int = 0
    tokens: int = 0
    received_bytes: int = 0
    first: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    whole: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)


class Connection(asyncio.Protocol):
    """Sends one request at a time.

    Args:
        counts_usage: Whether tokens are counted by the usage at the end of a response.

    Attributes:
        totals: The counts to which the current request adds.
        on_first: Called at the first content of each response.
        tokens: Tokens of the current response so far.
    """

    def __init__(self, *, counts_usage: bool = False) -> None:
        self.totals = Totals()
        self._counts_usage = counts_usage
        self.on_first: Callable[[], None] | None = None
        self.tokens = 0
        self._transport: asyncio.WriteTransport | None = None
        self._outcome: asyncio.Future[str] | None = None
        self._rest = b""
        self._partial = b""
        self._in_body = False
        self._remaining = 0
        self._status = 0
        self._events = False
        self._done = False
        self._close = False
        self._fault = ""
        self._sent_at = 0.0
        self._last_at = 0.0

    @property
    def usable(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, totals: Totals) -> asyncio.Future[str]:
        """Sends a request; the future's result is the error, or "" without one."""
        self.totals = totals
        self._rest = self._partial = b""
        self._in_body = self._done = self._close = False
        self._fault = ""
        self._last_at = 0.0
        self.tokens = 0
        self._outcome = asyncio.get_running_loop().create_future()
        self._sent_at = time.perf_counter()
        if self._transport is None:
            self._end("not connected")
        else:
            self._transport.write(request)
        return self._outcome

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stores the transport."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the response, without error if its body lasts until the connection closes."""
        self._transport = None
        if self._outcome is not None and not self._outcome.done():
            if self._in_body and self._remaining == _UNTIL_CLOSE:
                self._finish()
            else:
                self._end(f"cut: {type(exc).__name__}" if exc else "cut")

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Reads the head of a response, then its body."""
        self.totals.received_bytes += len(data)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._in_body:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            self._read_head(data[:end])
            data = data[end + 4 :]
        if self._remaining == _CHUNKED:
            self._read_chunks(data)
            return
        self._content(data)
        if self._remaining >= 0:
            self._remaining -= len(data)
            if self._remaining <= 0:
                self._finish()

    def _read_head(self, head: bytes) -> None:
        self._status = int(head[9:12])
        lower = head.lower()
        self._events = b"text/event-stream" in lower and self._status == 200
        self._close = b"\r\nconnection: close" in lower
        self._in_body = True
        if b"transfer-encoding: chunked" in lower:
            self._remaining = _CHUNKED
            return
        at = lower.find(b"\r\ncontent-length:")
        if at < 0:
            self._remaining = _UNTIL_CLOSE
        else:
            self._remaining = int(lower[at + 17 :].split(b"\r\n", 1)[0])

    def _read_chunks(self, data: bytes) -> None:
        position = 0
        pieces: list[bytes] = []
        while (line_end := data.find(b"\r\n", position)) >= 0:
            size = int(data[position:line_end].partition(b";")[0], 16)
            end = line_end + 2 + size
            if len(data) < end + 2:
                break
            if not size:
                self._content(b"".join(pieces))
                self._finish()
                return
            pieces.append(data[line_end + 2 : end])
            position = end + 2
        self._rest = data[position:]
        if pieces:
            self._content(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _content(self, data: bytes) -> None:
        if not self._events:
            return
        data = self._partial + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n")
        self._partial = data[end + 2 :] if end >= 0 else data
        if end < 0:
            return
        data = data[:end]
        if contents := _CONTENT.findall(data):
            self._count(contents)
        if self._counts_usage and (usage := _USAGE.search(data)):
            self._add_tokens(int(usage[1]))
        if data.endswith(b"[DONE]"):
            self._done = True
        if _ERROR.search(data):
            self._fault = "error event"

    def _count(self, contents: list[bytes]) -> None:
        now = time.perf_counter()
        totals = self.totals
        totals.chunks += len(contents)
        if not self._counts_usage:
            self._add_tokens(sum(content.count(b" ") or 1 for content in contents))
        if self._last_at:
            totals.gaps.append(now - self._last_at)
        else:
            totals.first.append(now - self._sent_at)
            if self.on_first is not None:
                self.on_first()
        self._last_at = now

    def _add_tokens(self, tokens: int) -> None:
        self.totals.tokens += tokens
        self.tokens += tokens

    def _finish(self) -> None:
        if self._status != 200:
            self._end(f"status {self._status}")
        elif self._fault:
            self._end(self._fault)
        elif self._events and not self._done:
            self._end("no [DONE]")
        else:
            self.totals.requests += 1
            self.totals.whole.append(time.perf_counter() - self._sent_at)
            self._end("")
        if self._close:
            self.close()

    def _end(self, fault: str) -> None:
        if fault:
            self.totals.errors[fault] += 1
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(fault)


class Server:
    """The address of a server and the head of its requests.

    Args:
        url: Base URL, without /v1.
        key: API key; "" for none.
        counts_usage: As in Connection.
    """

    def __init__(self, url: str, key: str, *, counts_usage: bool = False) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._counts_usage = counts_usage
        self._key = f"authorization: Bearer {key}\r\n" if key else ""

    async def connect(self) -> Connection:
        """Opens a connection."""
        loop = asyncio.get_running_loop()
        make = functools.partial(Connection, counts_usage=self._counts_usage)
        _, connection = await loop.create_connection(make, self.host, self.port)
        return connection

    def post(self, path: str, body: bytes) -> bytes:
        """Returns the bytes of a POST request."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n{self._key}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Caller:
    """A connection that is opened again after the server has closed it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connection: Connection | None = None

    async def send(
        self,
        request: bytes,
        totals: Totals,
        tokens: int = 0,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        """Sends a request and waits for the end of its response; errors are only counted."""
        try:
            if self.connection is None or not self.connection.usable:
                self.connection = await self._server.connect()
        except OSError as error:
            totals.errors[f"connect: {type(error).__name__}"] += 1
            return
        connection = self.connection
        connection.on_first = on_first
        fault = await connection.send(request, totals)
        if tokens and not fault and connection.tokens != tokens:
            totals.errors[f"{connection.tokens} tokens for {tokens}"] += 1

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
