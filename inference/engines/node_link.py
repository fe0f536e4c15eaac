"""The connection between the head and each follower of a model: who is there, and who has ended.

vLLM itself does not notice the end of another machine's processes before it computes, or, on a
follower, at all. So each follower keeps one TCP connection to the head for as long as it runs:

    follower    a line of JSON, `Hello`
    head        a line of JSON, `Answer`, once all followers are there; then both start vLLM

Neither side sends more. The end of the connection is the end of the other side, which each takes
as its own: vLLM cannot go on with another process in the place of one that has ended. The kernel
closes the connections of a process that is killed; a machine that is gone is noticed after
KEEPALIVE_SECONDS. Nothing is encrypted, as in vLLM's own connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any, Final

import msgspec

from inference.engines.nodes import Nodes
from keys import ConfigError

log = logging.getLogger(__name__)

# The longest wait of the head for its followers, and of a follower for the start.
JOIN_SECONDS: Final = 600.0
# Seconds without a sign of life of the other machine after which it counts as gone.
KEEPALIVE_SECONDS: Final = 20
# Seconds for a connection to be made and for its first line.
_HELLO_SECONDS: Final = 5.0
# Seconds between two attempts to reach the head.
_RETRY_SECONDS: Final = 1.0
_MAX_LINE_BYTES: Final = 4096


class Hello(msgspec.Struct, frozen=True):
    """A follower's line: its rank, and a digest of configuration, model files and vLLM."""

    rank: int
    fingerprint: str


class Answer(msgspec.Struct, frozen=True):
    """The head's line: why it refuses the follower; "" to start."""

    refused: str = ""


class JoinError(Exception):
    """The nodes of a model did not come together; the message says why."""


class HeadLink:
    """The head's end of the connections.

    Attributes:
        lost: Set once a follower has ended after the start.
        address: The head's own address towards the followers; empty before the first has come.
    """

    def __init__(self, model: str, nodes: Nodes, fingerprint: str) -> None:
        self._model = model
        self._nodes = nodes
        self._fingerprint = fingerprint
        self._server: asyncio.Server | None = None
        self._followers: dict[int, asyncio.StreamWriter] = {}
        self._complete = asyncio.Event()
        self._started = False
        self._closed = False
        self.lost = asyncio.Event()
        self.address = ""

    async def open(self) -> None:
        """Listens at the head's address; raises ConfigError if that is not possible."""
        nodes = self._nodes
        try:
            self._server = await asyncio.start_server(
                self._serve, nodes.address, nodes.port, limit=_MAX_LINE_BYTES
            )
        except OSError as error:
            raise ConfigError(
                f"models.{self._model}.engine_args.master_addr: cannot listen on {nodes.address} "
                f"port {nodes.port}, which is master_port and one: {error.strerror}"
            ) from error

    async def gather(self) -> None:
        """Waits for all followers and tells them to start.

        Raises:
            JoinError: One of them did not come within JOIN_SECONDS.
        """
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                while self._absent:
                    await self._complete.wait()
        except TimeoutError:
            raise JoinError(f"no {self.missing} within {JOIN_SECONDS:.0f} s") from None
        self._started = True
        for writer in self._followers.values():
            writer.write(msgspec.json.encode(Answer()) + b"\n")

    @property
    def missing(self) -> str:
        """The followers that have not come, as text."""
        absent = self._absent
        return f"follower{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"

    @property
    def _absent(self) -> list[int]:
        return [rank for rank in range(1, self._nodes.count) if rank not in self._followers]

    async def close(self) -> None:
        """Ends all connections, which ends the followers."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for writer in self._followers.values():
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = msgspec.json.decode(await reader.readline(), type=Hello)
            if self._admits(hello, peer, writer):
                await self._keep(hello.rank, peer, reader, writer)
        except (TimeoutError, OSError, ValueError) as error:
            # Whatever connects here without being a follower.
            log.info("%s: %s is not a follower: %s", self._model, peer, type(error).__name__)
        finally:
            writer.close()

    def _admits(self, hello: Hello, peer: str, writer: asyncio.StreamWriter) -> bool:
        """Whether this is a follower that is missing; one that cannot be used is told so."""
        if hello.rank in self._followers:
            # Not an error of the follower: the one before it may have ended unnoticed.
            log.warning("%s: another follower %d came, from %s", self._model, hello.rank, peer)
            return False
        refused = ""
        if not 1 <= hello.rank < self._nodes.count:
            refused = f"nnodes is {self._nodes.count} at the head"
        elif hello.fingerprint != self._fingerprint:
            refused = (
                "the head has other engine_args, another source, other files of the model, another "
                "kind of processor, or another version of vLLM"
            )
        if refused:
            log.error("%s: refused follower %d, %s: %s", self._model, hello.rank, peer, refused)
            writer.write(msgspec.json.encode(Answer(refused)) + b"\n")
        return not refused

    async def _keep(
        self, rank: int, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Counts a follower as present until its connection ends."""
        _keep_alive(writer)
        self.address = writer.get_extra_info("sockname")[0]
        self._followers[rank] = writer
        log.info("%s: follower %d joined from %s", self._model, rank, peer)
        if not self._absent:
            self._complete.set()
        try:
            await _end(reader)
        finally:
            del self._followers[rank]
            self._complete.clear()
            if self._started and not self._closed:
                log.error("%s: follower %d (%s) has ended", self._model, rank, peer)
                self.lost.set()


class FollowerLink:
    """A follower's end of its connection; `join` makes it.

    Attributes:
        address: The follower's own address towards the head.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.address: str = writer.get_extra_info("sockname")[0]

    async def ended(self) -> None:
        """Returns once the head has ended."""
        await _end(self._reader)

    def close(self) -> None:
        """Ends the connection, which ends the head and so all other followers."""
        self._writer.close()


async def join(nodes: Nodes, hello: Hello) -> FollowerLink:
    """Connects to the head, and returns once all followers are to start.

    Raises:
        JoinError: The head refuses this follower, or there is no start within JOIN_SECONDS.
    """
    where = f"the head at {nodes.address} port {nodes.port}"
    log.info("waiting for %s", where)
    try:
        async with asyncio.timeout(JOIN_SECONDS):
            while True:
                with suppress(OSError):  # TimeoutError included
                    if (link := await _attempt(nodes, hello)) is not None:
                        return link
                await asyncio.sleep(_RETRY_SECONDS)
    except TimeoutError:
        raise JoinError(f"no start by {where} within {JOIN_SECONDS:.0f} s") from None


async def _attempt(nodes: Nodes, hello: Hello) -> FollowerLink | None:
    """Makes a connection and waits for the start; None if the head has closed it before."""
    async with asyncio.timeout(_HELLO_SECONDS):
        reader, writer = await asyncio.open_connection(
            nodes.address, nodes.port, limit=_MAX_LINE_BYTES
        )
    started = False
    try:
        _keep_alive(writer)
        writer.write(msgspec.json.encode(hello) + b"\n")
        line = await reader.readline()
        if not line:
            return None
        if refused := msgspec.json.decode(line, type=Answer).refused:
            raise JoinError(f"the head refuses follower {hello.rank}: {refused}")
        started = True
        return FollowerLink(reader, writer)
    except ValueError as error:
        raise JoinError(f"{nodes.address} port {nodes.port} is not a head") from error
    finally:
        if not started:
            writer.close()


async def _end(reader: asyncio.StreamReader) -> None:
    """Returns once the connection has ended, or the other side has sent what it must not."""
    with suppress(OSError):
        await reader.read(1)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection: Any = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        period = KEEPALIVE_SECONDS // 4
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, period)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, period)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
