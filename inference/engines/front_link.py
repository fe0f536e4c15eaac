"""The connection between the process with an engine and each of its fronts.

A front connects to a Unix socket once the engine runs, and keeps the connection as long as it runs:

    front     a line of JSON, `Hello`
    engine    a line of JSON, `Welcome`

Neither side sends more. The end of the connection is the end of the other side. That of a front
aborts its requests in the engine. That of the engine ends the fronts: a new engine has other
addresses and an empty cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger(__name__)

# Seconds between two attempts to connect, and within which Hello and Welcome must arrive.
_RETRY_SECONDS: Final = 0.2
_HELLO_SECONDS: Final = 30.0
# Bytes of a line; that of the engine has vLLM's message that it is ready.
_MAX_LINE_BYTES: Final = 1 << 20


class Hello(msgspec.Struct, frozen=True):
    """A front's line: its index."""

    front: int


class Welcome(msgspec.Struct, frozen=True):
    """The engine's line: the message with which vLLM's engine core says that it is ready."""

    ready: bytes


class EngineLink:
    """The engine's end of the connections.

    Args:
        count: The number of fronts.
        ready: The message for each of them.
        release: Aborts the requests of a front, which has ended.
    """

    def __init__(
        self, count: int, ready: bytes, release: Callable[[int], Awaitable[object]]
    ) -> None:
        self._count = count
        self._welcome = msgspec.json.encode(Welcome(ready)) + b"\n"
        self._release = release
        self._server: asyncio.Server | None = None
        self._fronts: set[asyncio.StreamWriter] = set()
        self._left = asyncio.Event()
        self._left.set()

    async def open(self, path: Path) -> None:
        """Listens on the Unix socket `path`; replaces the socket of an engine that has ended."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def wait_left(self, seconds: float) -> None:
        """Waits until no front is connected, for at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._left.wait()

    def close(self) -> None:
        """Ends all connections, which ends the fronts."""
        if self._server is not None:
            self._server.close()
        for writer in self._fronts:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                line = await reader.readline()
                if not line:
                    return  # The launcher, which only asks whether the engine runs.
            front = msgspec.json.decode(line, type=Hello).front
            if not 0 <= front < self._count:
                raise ValueError("there is no such front")
            # Aborts the requests that an earlier process of this front left in the engine.
            await self._release(front)
            self._fronts.add(writer)
            self._left.clear()
            writer.write(self._welcome)
            await _end(reader)
            log.info("front %d has left", front)
            await self._release(front)
        except (TimeoutError, OSError, ValueError) as error:
            log.warning("no front of this engine has connected: %r", error)
        finally:
            self._fronts.discard(writer)
            if not self._fronts:
                self._left.set()
            writer.close()


class FrontLink:
    """A front's end of its connection; `join` makes it.

    Attributes:
        ready: The message of vLLM's engine core.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: bytes
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.ready = ready

    async def ended(self) -> None:
        """Returns once the engine has ended."""
        await _end(self._reader)

    def close(self) -> None:
        """Ends the connection."""
        self._writer.close()


async def join(path: Path, front: int) -> FrontLink:
    """Connects a front to its engine, once it runs."""
    while True:
        with suppress(OSError, ValueError):  # TimeoutError and a closed connection included
            return await _attempt(path, front)
        await asyncio.sleep(_RETRY_SECONDS)


async def _attempt(path: Path, front: int) -> FrontLink:
    reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE_BYTES)
    try:
        writer.write(msgspec.json.encode(Hello(front)) + b"\n")
        async with asyncio.timeout(_HELLO_SECONDS):
            line = await reader.readline()
        return FrontLink(reader, writer, msgspec.json.decode(line, type=Welcome).ready)
    except BaseException:
        writer.close()
        raise


async def _end(reader: asyncio.StreamReader) -> None:
    """Returns once the connection has ended, or the other side has sent what it must not."""
    with suppress(OSError):
        await reader.read(1)
