"""Drops clients that do not read, read too slowly, or have left unnoticed.

Each connection also counts what it holds of the process's memory budget (contract/memory.py).

aiohttp alone                                     here
------------------------------------------------  ----------------------------------------------
a client that reads nothing stays connected       the kernel drops it after `write_stall_seconds`
                                                  (`connection_made`)
a client that reads a little now and then stays   dropped after `write_stall_seconds`, and 1 s for
connected for as long as it likes                 each 16 KiB (`pause_writing`)
while requests are pipelined, nothing is read,    looks for one every second
and a disconnect is not noticed                   (`_look_for_disconnect`)
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from typing import Any, Final

from aiohttp import web

from contract.memory import Holding, MemoryBudget, MemorySpentError
from edge.config import EdgeConfig

log = logging.getLogger(__name__)

# A client may take `write_stall_seconds`, and the bytes that wait for it divided by this.
SLOWEST_BYTES_PER_SECOND: Final = 16 * 1024
# Seconds between two looks for a disconnect.
_LOOK_SECONDS: Final = 1.0


class BoundedConnection(web.RequestHandler):
    """A connection whose client is dropped if it is too slow; takes aiohttp's arguments, too.

    Attributes:
        holding: The body and the response of the current request.
    """

    __slots__ = ("_buffer", "_config", "_write_timer", "holding")

    def __init__(
        self, config: EdgeConfig, memory: MemoryBudget, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._config = config
        self.holding = Holding(memory)
        # The bytes in the transport while the client is behind.
        self._buffer = Holding(memory)
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Makes the kernel drop a client that does not acknowledge sent data in time.

        TCP_USER_TIMEOUT covers every response, data in the kernel's buffer, and connections that
        are closing. Only Linux has it.
        """
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and connection.family != socket.AF_UNIX:
            milliseconds = int(self._config.write_stall_seconds * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    @property
    def unsent(self) -> bool:
        """Whether bytes wait that the kernel has not taken yet.

        In TLS the transport passes its bytes to another one, whose buffer is out of reach. But
        while that one holds any, the kernel's buffer is full.
        """
        transport = self.transport
        if transport is None:
            return False
        if transport.get_write_buffer_size():
            return True
        connection = transport.get_extra_info("socket")
        if transport.get_extra_info("sslcontext") is None or connection is None:
            return False
        return connection.fileno() >= 0 and not _has(connection, select.POLLOUT)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stops the timer of a slow client, and returns what the connection held."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        self.holding.close()
        self._buffer.close()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Starts the time in which the client must take what waits for it."""
        super().pause_writing()
        if self.transport is not None:
            unsent: int = self.transport.get_write_buffer_size()
            # The kernel takes more only once it has sent a part of what it has.
            connection: socket.socket = self.transport.get_extra_info("socket")
            unsent += connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            seconds = self._config.write_stall_seconds + unsent / SLOWEST_BYTES_PER_SECOND
            self._write_timer = self._loop.call_later(seconds, self._drop, "reads too slowly")
            self._buffer.blocked(self._cut)
            if not self.count_unsent():
                self._loop.call_soon(self._cut)

    def resume_writing(self) -> None:
        """Ends that time."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._buffer.unblocked()
        self._buffer.release()

    def count_unsent(self) -> bool:
        """Counts the bytes in the transport; returns whether the budget has room for them."""
        if self.transport is not None:
            try:
                self._buffer.add(self.transport.get_write_buffer_size() - self._buffer.size)
            except MemorySpentError:
                return False
        return True

    def _cut(self) -> None:
        self.holding.close()
        self._buffer.close()
        self._drop("reads too slowly while memory is short")

    def _pause_transport_reading(self) -> None:
        """Looks for a disconnect every second while nothing is read, and so no end is seen."""
        super()._pause_transport_reading()
        self._loop.call_later(_LOOK_SECONDS, self._look_for_disconnect)

    def _look_for_disconnect(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing() or transport.is_reading():
            return
        if _has(transport.get_extra_info("socket"), select.POLLRDHUP):
            self._drop("has disconnected")
        else:
            self._loop.call_later(_LOOK_SECONDS, self._look_for_disconnect)

    def _drop(self, reason: str) -> None:
        if self.transport is not None:
            log.info("dropping a client that %s", reason)
            self.transport.abort()


def _has(connection: socket.socket, event: int) -> bool:
    """Whether a socket has an event of poll(2) now, or is broken."""
    poll = select.poll()
    poll.register(connection.fileno(), event)
    return bool(poll.poll(0))
