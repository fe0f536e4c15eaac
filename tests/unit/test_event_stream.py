"""The bytes of an event stream: their order, and the limit of those that wait for the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11

from contract.memory import SMALL_BYTES, Holding, MemoryBudget, MemorySpentError
from edge.config import EdgeConfig
from edge.exchange.event_stream import TICK_SECONDS, EventStream
from edge.openai import sse
from edge.openai.errors import internal_error
from edge.openai.pieces import Base64, LargeEvent
from tests.virtual_time import now, run_virtually, settle

BOUND = 1000
MIB = 1024 * 1024


class Wire:
    """A client's connection: the transport, and what aiohttp's response sends on it.

    Counts written bytes as unread until `unread` is reset.
    """

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.headers_alone: bool | None = None
        self.ended = False
        self.unread = 0
        self.aborted = False
        self.closing = False
        self.may_write = asyncio.Event()
        self.may_write.set()
        # The connection's part of the memory budget, and whether it has room for unsent bytes.
        self.holding = Holding(MemoryBudget(64 * MIB))
        self.has_room = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes) -> None:
        self.unread += len(data)
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.aborted or self.closing

    def abort(self) -> None:
        self.aborted = True


class Response:
    """Stands in for aiohttp's response."""

    _send_headers_immediately = True
    wire: Wire
    during_prepare: Callable[[], None]

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = dict(headers)

    async def prepare(self, request: object) -> None:
        self.wire.headers = self.headers
        self.wire.headers_alone = self._send_headers_immediately
        self.during_prepare()

    async def write(self, data: bytes) -> None:
        await self.wire.may_write.wait()
        self.wire.sent.append(data)

    async def write_eof(self) -> None:
        self.wire.ended = True


WEB = SimpleNamespace(StreamResponse=Response)
Test = Callable[[EventStream, Wire], Coroutine[Any, Any, None]]
Virtually = Callable[..., None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Runs test(stream, wire) with a stream that is not open yet."""

    def run(
        test: Test,
        version: object = HttpVersion10,
        during_prepare: Callable[[EventStream], None] = lambda _: None,
        **config: Any,
    ) -> None:
        async def main() -> None:
            wire = Wire()
            monkeypatch.setattr(Response, "wire", wire, raising=False)
            monkeypatch.setattr("edge.exchange.event_stream.web", WEB)
            clock = SimpleNamespace(monotonic=now)
            monkeypatch.setattr("edge.exchange.event_stream.time", clock)
            connection = SimpleNamespace(count_unsent=lambda: wire.has_room, holding=wire.holding)
            request = request_on(wire, version, connection)
            stream = EventStream(request, EdgeConfig(max_pending_bytes=BOUND, **config))
            monkeypatch.setattr(
                Response, "during_prepare", lambda _: during_prepare(stream), raising=False
            )
            await test(stream, wire)

        run_virtually(main())

    return run


def request_on(transport: Wire | None, version: object, connection: object) -> Any:
    """A request of a client, as far as an event stream reads it."""

    class Request(dict[Any, Any]):
        pass

    request: Any = Request()
    request.connection = connection
    request.transport, request.version = transport, version
    return request


def image(size: int, preview_of: int | None = None) -> LargeEvent:
    return LargeEvent([b"x" * size], preview_of)


def test_events_have_openais_form() -> None:
    assert sse.error_event(internal_error()) == b"data: " + internal_error().body() + b"\n\n"
    assert (sse.HEAD, sse.TAIL, sse.DONE) == (b"data: ", b"\n\n", b"data: [DONE]\n\n")
    assert sse.KEEP_ALIVE.startswith(b":")
    assert sse.KEEP_ALIVE.endswith(b"\n")
    assert sse.CONTENT_TYPE == "text/event-stream; charset=utf-8"


# Opening


def test_first_events_leave_with_the_headers(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(b"a")
        stream.write(b"b")
        stream.write(b"")
        assert wire.sent == []
        response: Any = await stream.open({"x-more": "1"})
        assert response.headers is wire.headers
        assert wire.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "x-more": "1",
        }
        assert wire.headers_alone is False
        assert wire.sent == [b"ab"]
        stream.write(b"c")
        assert wire.sent == [b"ab", b"c"]

    virtually(test)


def test_headers_leave_alone_if_there_are_no_events(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        assert wire.headers_alone is True
        assert wire.sent == []
        stream.write(b"a")
        assert wire.sent == [b"a"]

    virtually(test)


@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
def test_events_that_come_while_the_headers_are_sent_follow_in_order(
    virtually: Virtually, version: object
) -> None:
    def meanwhile(stream: EventStream) -> None:
        stream.write(b"b")
        stream.write(b"c")

    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(b"a")
        await stream.open({})
        stream.write(b"d")
        if version is HttpVersion10:
            assert wire.sent == [b"a", b"bc", b"d"]
        else:  # aiohttp frames what it sends itself
            assert wire.sent == [b"a", b"2\r\nbc\r\n", b"1\r\nd\r\n"]

    virtually(test, version, meanwhile)


def test_chunk_has_its_length_in_hexadecimal(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(b"x" * 26)
        assert wire.sent == [b"1a\r\n" + b"x" * 26 + b"\r\n"]

    virtually(test, HttpVersion11)


def test_output_behind_a_large_event_waits_for_it(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(b"a")
        stream.write(image(3))
        stream.write(b"b")
        await stream.open({})
        assert wire.sent == [b"a"]
        stream.write(b"c")
        assert wire.sent == [b"a"]
        await stream.send_queued()
        assert wire.sent == [b"a", b"xxx", b"b", b"c"]
        stream.write(b"d")
        assert wire.sent[4:] == [b"d"]
        stream.write(image(2))
        stream.write(b"e")
        assert wire.sent[5:] == []
        await stream.send_queued()
        assert wire.sent[5:] == [b"xx", b"e"]

    virtually(test)


def test_large_event_that_comes_while_the_headers_are_sent_keeps_its_place(
    virtually: Virtually,
) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(b"b")
        assert wire.sent == []
        await stream.send_queued()
        assert wire.sent == [b"x", b"b"]

    virtually(test, during_prepare=lambda stream: stream.write(image(1)))


def test_large_event_is_sent_in_pieces_between_which_others_run(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(LargeEvent([b"data: ", Base64(bytes(3 * MIB)), b"\n\n"]))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        await stream.send_queued()
        other.cancel()
        assert b"".join(wire.sent) == b"data: " + b"A" * 4 * MIB + b"\n\n"
        assert len(wire.sent) == 9
        assert turns >= 8

    virtually(test)


def test_large_event_waits_for_the_client(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(image(1))
        wire.may_write.clear()
        sending = asyncio.create_task(stream.send_queued())
        await settle()
        stream.write(b"a")
        assert wire.sent == []
        wire.may_write.set()
        await sending
        assert wire.sent == [b"x", b"a"]

    virtually(test)


def test_dropped_output_is_not_sent(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(image(1))
        stream.write(b"a")
        stream.drop_queued()
        stream.write(b"error")
        assert wire.sent == []
        await stream.send_queued()
        await stream.close()
        assert wire.sent == [b"error"]
        assert wire.ended

    virtually(test)


# Bytes counted in the memory budget


def test_output_counts_while_it_is_queued(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(b"ab")
        assert wire.holding.size == 2
        stream.write(image(30))
        stream.write(b"c")
        assert wire.holding.size == 33
        await stream.open({})
        assert wire.holding.size == 31
        await stream.send_queued()
        assert wire.holding.size == 0

    virtually(test)


def test_large_event_without_room_is_refused_and_small_output_is_not(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        wire.holding.count(64 * MIB)
        with pytest.raises(MemorySpentError):
            stream.write(image(1))
        stream.write(b"a")
        assert wire.holding.size == 64 * MIB + 1
        await stream.open({})
        assert wire.sent == [b"a"]
        assert wire.holding.size == 64 * MIB

    virtually(test)


def test_dropped_output_and_the_error_behind_it_count_nothing(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(image(30))
        stream.write(b"a")
        assert wire.holding.size == 31
        stream.drop_queued()
        assert wire.holding.size == 0
        stream.write(b"error")
        assert wire.holding.size == 0
        await stream.send_queued()
        assert (wire.holding.size, wire.sent) == (0, [b"error"])

    virtually(test)


def test_dropped_preview_counts_nothing(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(image(16 * MIB, preview_of=0))
        stream.write(image(5, preview_of=1))
        stream.write(image(7, preview_of=0))
        assert wire.holding.size == 5 + 7

    virtually(test)


@pytest.mark.parametrize(
    ("unread", "has_room", "aborted"),
    [
        (SMALL_BYTES, False, False),
        (SMALL_BYTES + 1, False, True),
        (SMALL_BYTES + 1, True, False),
    ],
)
def test_client_that_is_behind_is_disconnected_if_the_budget_has_no_room(
    virtually: Virtually, unread: int, has_room: bool, aborted: bool
) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(b"x" * SMALL_BYTES)
        wire.unread, wire.has_room = unread, has_room
        stream.write(b"a")
        assert wire.aborted is aborted

    virtually(test)


# Previews


def test_newer_preview_replaces_older_ones_beyond_sixteen_mebibytes(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(image(1))
        stream.write(image(2, preview_of=0))
        stream.write(image(16 * MIB - 2, preview_of=1))
        stream.write(image(3, preview_of=0))  # exactly 16 MiB waited
        stream.write(b"text")
        stream.write(image(4, preview_of=0))
        await stream.open({})
        await stream.send_queued()
        assert list(map(len, wire.sent)) == [1, 16 * MIB - 2, 4, 4]

    virtually(test)


def test_previews_of_sixteen_mebibytes_are_all_sent(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(image(2, preview_of=0))
        stream.write(image(16 * MIB - 2, preview_of=1))
        stream.write(image(3, preview_of=0))
        await stream.open({})
        await stream.send_queued()
        assert list(map(len, wire.sent)) == [2, 16 * MIB - 2, 3]

    virtually(test)


def test_finished_image_drops_no_preview(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        stream.write(image(17 * MIB, preview_of=0))
        stream.write(image(1))
        stream.write(image(17 * MIB))
        stream.write(image(1, preview_of=1))
        await stream.open({})
        await stream.send_queued()
        assert sum(map(len, wire.sent)) == 34 * MIB + 2

    virtually(test)


# Comments that keep an idle stream open


def test_comment_is_sent_after_the_configured_silence(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        assert TICK_SECONDS == 5.0
        await stream.open({})
        await asyncio.sleep(6.9)
        stream.tick()
        assert wire.sent == []
        await asyncio.sleep(0.1)
        stream.tick()
        assert wire.sent == [sse.KEEP_ALIVE]
        stream.tick()
        assert wire.sent == [sse.KEEP_ALIVE]
        await asyncio.sleep(6.9)
        stream.write(b"a")
        stream.tick()
        await asyncio.sleep(6.9)
        stream.write(image(1))
        await stream.send_queued()
        await asyncio.sleep(6.9)
        stream.tick()
        assert wire.sent == [sse.KEEP_ALIVE, b"a", b"x"]
        await asyncio.sleep(0.2)
        stream.tick()
        assert wire.sent[3:] == [sse.KEEP_ALIVE]

    virtually(test, sse_keepalive_seconds=7.0)


def test_comment_of_a_stream_whose_first_event_left_with_the_headers(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await asyncio.sleep(100)
        stream.write(b"a")
        await stream.open({})
        stream.tick()
        assert wire.sent == [b"a"]

    virtually(test, sse_keepalive_seconds=7.0)


def test_no_comment_is_sent_without_a_configured_silence(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        await asyncio.sleep(1000)
        stream.tick()
        assert wire.sent == []

    virtually(test, sse_keepalive_seconds=0.0)


# Clients that do not read


def test_client_that_reads_nothing_is_disconnected_at_the_limit(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        for _ in range(11):
            stream.write(b"x" * 100)
        assert (wire.unread, wire.aborted) == (BOUND + 100, False)
        stream.write(b"x" * 100)  # exactly the limit is unread
        assert (wire.unread, wire.aborted) == (BOUND + 200, False)
        stream.write(b"x" * 100)
        assert (wire.unread, wire.aborted) == (BOUND + 200, True)

    virtually(test)


def test_first_write_may_find_exactly_the_limit_unread(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        wire.unread = BOUND
        stream.write(b"x")
        assert (wire.sent, wire.aborted) == ([b"x"], False)

    virtually(test)


def test_client_that_reads_survives_a_burst_beyond_the_limit(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        for _ in range(10):
            stream.write(b"x" * 50 * BOUND)
            stream.write(b"x" * 10)
            assert not wire.aborted
            wire.unread = 0

    virtually(test)


def test_large_event_raises_the_limit_by_its_largest_piece(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        stream.write(image(5 * BOUND))
        stream.write(image(BOUND))
        await stream.send_queued()
        wire.unread = 6 * BOUND
        stream.write(b"a")
        assert not wire.aborted
        wire.unread = 6 * BOUND + 1
        stream.write(b"b")
        assert wire.aborted

    virtually(test)


def test_client_with_an_unread_burst_is_disconnected_before_the_third_burst(
    virtually: Virtually,
) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        for _ in range(10):
            stream.write(b"x" * 50 * BOUND)
        assert wire.aborted
        assert wire.unread <= BOUND + 2 * 50 * BOUND

    virtually(test)


def test_no_bytes_are_written_after_the_disconnect(virtually: Virtually) -> None:
    async def test(stream: EventStream, wire: Wire) -> None:
        await stream.open({})
        wire.closing = True
        stream.write(b"x")
        assert (wire.sent, wire.aborted) == ([], False)
        wire.closing = False
        wire.unread = BOUND
        stream.write(b"")
        assert not wire.aborted
        wire.unread = BOUND + 1
        stream.write(b"x")
        stream.write(b"x")
        assert (wire.sent, wire.aborted) == ([], True)

    virtually(test)


def test_client_that_left_before_the_stream_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("edge.exchange.event_stream.web", WEB)
        monkeypatch.setattr(Response, "wire", Wire(), raising=False)
        monkeypatch.setattr(Response, "during_prepare", lambda _: None, raising=False)
        connection = SimpleNamespace(holding=Holding(MemoryBudget(1 << 30)))
        request = request_on(None, HttpVersion11, connection)
        stream = EventStream(request, EdgeConfig())
        await stream.open({})
        stream.write(b"x")
        assert Response.wire.sent == []

    run_virtually(test())
