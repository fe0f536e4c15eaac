"""Limit of the bytes waiting for a stream's client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

from aiohttp import HttpVersion10

from contract.memory import Holding, MemoryBudget
from edge.config import EdgeConfig
from edge.exchange.event_stream import EventStream

BOUND = 1000


class Transport:
    """Counts written bytes as unread until `unread` is reset."""

    def __init__(self) -> None:
        self.unread = 0
        self.most = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes) -> None:
        self.unread += len(data)
        self.most = max(self.most, self.unread)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def stream_to(transport: Transport) -> EventStream:
    """An open stream whose head and first events were read at once."""
    connection = SimpleNamespace(count_unsent=lambda: True, holding=Holding(MemoryBudget(1 << 30)))
    request: Any = SimpleNamespace(transport=transport, version=HttpVersion10, protocol=connection)
    stream = EventStream(request, EdgeConfig(max_pending_bytes=BOUND))
    response: Any = SimpleNamespace(headers={}, prepare=AsyncMock(), write=AsyncMock())
    stream._response = response
    await stream.open({})
    return stream


async def test_client_that_reads_nothing_is_disconnected_at_the_limit() -> None:
    transport = Transport()
    stream = await stream_to(transport)
    for _ in range(BOUND):
        stream.write(b"x" * 100)
    assert transport.aborted
    assert BOUND <= transport.most <= BOUND + 2 * 100


async def test_client_that_reads_survives_a_burst_beyond_the_limit() -> None:
    transport = Transport()
    stream = await stream_to(transport)
    for _ in range(10):
        stream.write(b"x" * 50 * BOUND)
        stream.write(b"x" * 10)
        assert not transport.aborted
        transport.unread = 0


async def test_client_with_an_unread_burst_is_disconnected_before_the_third_burst() -> None:
    transport = Transport()
    stream = await stream_to(transport)
    for _ in range(10):
        stream.write(b"x" * 50 * BOUND)
    assert transport.aborted
    assert transport.most <= BOUND + 2 * 50 * BOUND


async def test_no_bytes_are_written_after_the_disconnect() -> None:
    transport = Transport()
    stream = await stream_to(transport)
    transport.unread = BOUND + 1
    stream.write(b"x")
    stream.write(b"x")
    assert (transport.aborted, transport.unread) == (True, BOUND + 1)
