"""An exchange with its calls, the timer of its 200 and its client, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from contract.memory import UNBOUNDED, Holding, MemoryBudget, MemorySpentError
from contract.request_metrics import CANCELLED, Spent
from edge.config import EdgeConfig
from edge.exchange import runner
from edge.exchange.machine import Exchange, State
from edge.metrics import EdgeMetrics
from edge.observer import Outcome
from edge.openai import sse
from edge.openai.errors import OpenAIError, overloaded
from edge.openai.pieces import LargeEvent, Output
from edge.upstream.transport import CallOptions, Receiver
from isthmus.v1.generate_pb2 import ChoiceDelta, ChoiceFinish, GenerateRequest, GenerateResponse
from isthmus.v1.usage_pb2 import Admitted, RateLimit, RateLimits
from tests.unit.test_exchange import ADMITTED, Document, Part, Stream
from tests.virtual_time import now, run_virtually, settle

OK = Status()
LOST = Status(code=Code.UNAVAILABLE)
OPTIONS = CallOptions(10.0, {}, "")
CALLS = [GenerateRequest(text="a"), GenerateRequest(text="b")]


class Call:
    def __init__(self, request: object, receiver: Receiver) -> None:
        self.request = request
        self.receiver = receiver
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class Events:
    """Stands in for the event stream: `sent` has what leaves, `queued` what waits."""

    made: list[Events]

    def __init__(self, request: object, config: EdgeConfig) -> None:
        self.queued: list[Output] = []
        self.sent: list[Output] = []
        self.opened: tuple[float, Mapping[str, str]] | None = None
        self.ticks: list[float] = []
        self.closed = False
        self.error: Exception | None = None
        self.has_room = True
        self.made.append(self)

    def write(self, output: Output) -> None:
        if not self.has_room:
            self.has_room = True
            raise MemorySpentError
        if output:
            self.queued.append(output)

    async def open(self, headers: Mapping[str, str]) -> object:
        self.opened = now(), headers
        return self

    async def send_queued(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.sent += self.queued
        self.queued.clear()

    def drop_queued(self) -> None:
        self.queued.clear()

    def tick(self) -> None:
        self.ticks.append(now())

    async def close(self) -> None:
        self.closed = True

    @property
    def text(self) -> bytes:
        return b"".join(part for part in [*self.sent, *self.queued] if isinstance(part, bytes))


class Client:
    """A request, the calls that it makes and its exchange."""

    def __init__(self, exchange: Exchange[Part], **config: Any) -> None:
        self.exchange = exchange
        self.calls: list[Call] = []
        self.refuses_after = 99
        self.edge = SimpleNamespace(
            config=EdgeConfig(**config),
            router=SimpleNamespace(open=self._open),
            exchanges=set(),
            metrics=Mock(spec=EdgeMetrics),
        )
        self.request: Any = SimpleNamespace(
            edge=self.edge,
            connection=SimpleNamespace(holding=Holding(UNBOUNDED)),
            id="req_1",
            started=0.0,
            outcome=None,
        )
        self.task: asyncio.Task[Any]

    def _open(self, request: object, receiver: Receiver, options: CallOptions) -> Call:
        assert options is OPTIONS
        if len(self.calls) == self.refuses_after:
            raise overloaded()
        self.calls.append(Call(request, receiver))
        return self.calls[-1]

    def start(self, run: Any, calls: int = 1) -> None:
        self.began = now()
        self.task = asyncio.create_task(run(self.request, self.exchange, CALLS[:calls], OPTIONS))

    @property
    def receiver(self) -> Receiver:
        return self.calls[0].receiver


Test = Callable[[Client], Coroutine[Any, Any, None]]
Virtually = Callable[..., None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Runs test(client) with a started request; nothing of it may be left."""
    monkeypatch.setattr("edge.exchange.runner.EventStream", Events)
    monkeypatch.setattr(Events, "made", [], raising=False)

    def run(
        test: Test,
        translator: Any = None,
        calls: int = 1,
        started: bool = True,
        **config: Any,
    ) -> None:
        async def main() -> None:
            plain = isinstance(translator, Document)
            client = Client(Exchange(translator or Stream(), calls), **config)
            if started:
                client.start(runner.collect if plain else runner.stream, calls)
                await settle()
                assert len(client.edge.exchanges) == 1
            await test(client)
            assert client.task.done()
            assert client.edge.exchanges == set()
            assert client.exchange.over
            assert all(call.cancels == 1 for call in client.calls)

        run_virtually(main())

    return run


def events() -> Events:
    (made,) = Events.made
    return made


# Plain responses


def test_plain_exchange_ends_with_its_last_call(virtually: Virtually) -> None:
    document = Document()

    async def test(client: Client) -> None:
        assert [call.request for call in client.calls] == CALLS
        for call, text in zip(client.calls, "ab", strict=True):
            call.receiver.on_part(ADMITTED)
            call.receiver.on_text(text)
        await asyncio.sleep(60)
        client.calls[0].receiver.on_end(OK)
        await settle()
        assert not client.task.done()
        client.calls[1].receiver.on_end(OK)
        await client.task
        assert document.collected == b"ab"

    virtually(test, document, calls=2)


def test_plain_exchange_raises_the_error_of_a_call(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_end(LOST)
        with pytest.raises(OpenAIError) as caught:
            await client.task
        assert caught.value.status == 503

    virtually(test, Document())


def test_calls_are_cancelled_when_the_client_leaves(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.task.cancel()
        await settle()
        assert client.exchange.state is State.DONE

    virtually(test, Document(), calls=2)


def test_calls_that_were_opened_are_cancelled_if_another_is_refused(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.refuses_after = 1
        client.start(runner.collect, 2)
        with pytest.raises(OpenAIError):
            await client.task
        assert len(client.calls) == 1

    virtually(test, Document(), calls=2, started=False)


@pytest.mark.parametrize("counted", [False, True])
def test_parts_of_a_document_are_counted_once(virtually: Virtually, counted: bool) -> None:
    document = Document()

    async def test(client: Client) -> None:
        client.request.connection.holding = holding = Holding(MemoryBudget(10))
        client.start(partial(runner.collect, counted=counted))
        await settle()
        client.receiver.on_part(ADMITTED)
        client.receiver.on_part(Part(b"abcd"))
        client.receiver.on_part(Part(b"efg"))
        assert holding.size == (0 if counted else 7)
        client.receiver.on_end(OK)
        await client.task
        assert document.collected == b"abcdefg"

    virtually(test, document, started=False)


def test_document_without_memory_for_it_fails(virtually: Virtually) -> None:
    document = Document()

    async def test(client: Client) -> None:
        client.request.connection.holding = holding = Holding(MemoryBudget(10))
        client.start(runner.collect)
        await settle()
        client.receiver.on_part(ADMITTED)
        client.receiver.on_part(Part(b"x" * 10))
        assert holding.size == 10
        client.receiver.on_part(Part(b"y"))
        with pytest.raises(OpenAIError) as caught:
            await client.task
        assert caught.value.body() == overloaded().body()
        assert document.collected == b"x" * 10

    virtually(test, document, started=False)


def test_parts_of_a_stream_are_not_counted_as_a_document(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.request.connection.holding = holding = Holding(MemoryBudget(10))
        client.start(runner.stream)
        await settle()
        client.receiver.on_part(ADMITTED)
        client.receiver.on_part(Part(b"x" * 20))
        assert holding.size == 0
        client.receiver.on_end(OK)
        await client.task
        assert events().text == b"<" + b"x" * 20 + b">"

    virtually(test, started=False)


# Streams


def test_stream_without_memory_for_its_output_ends_with_an_event(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        client.receiver.on_part(Part(b"queued"))
        events().has_room = False
        client.receiver.on_part(Part(b"b"))
        await client.task
        # The queue is dropped, to make room for the error.
        assert events().text == b"<a" + sse.error_event(overloaded())
        assert events().closed

    virtually(test)


def test_stream_leaves_nothing_queued(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        client.receiver.on_text("b")
        assert events().queued == [b"b"]
        client.task.cancel()
        await settle()
        assert events().queued == []

    virtually(test)


def test_stream_opens_with_its_first_output(virtually: Virtually) -> None:
    limits = RateLimits(requests=RateLimit(limit=9, remaining=8, reset_ms=1000))

    async def test(client: Client) -> None:
        await asyncio.sleep(60)
        assert events().opened is None
        client.receiver.on_part(Part(admitted=Admitted(rate_limits=limits)))
        await settle()
        assert events().opened is None
        client.receiver.on_text("a")
        await settle()
        assert events().opened is not None
        at, headers = events().opened or (0, {})
        assert at == client.began + 60
        assert headers["x-ratelimit-remaining-requests"] == "8"
        assert events().sent == [b"<a"]
        client.receiver.on_text("b")
        client.receiver.on_part(Part(b"c"))
        assert events().queued == [b"b", b"c"]
        client.receiver.on_end(OK)
        assert await client.task is events()
        assert events().text == b"<abc>"
        assert events().closed

    virtually(test)


def test_texts_wait_for_the_admission_of_all_sources(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        first, second = (call.receiver for call in client.calls)
        first.on_part(ADMITTED)
        first.on_text("a")
        first.on_text("b")
        assert events().queued == []
        second.on_part(ADMITTED)
        await settle()
        second.on_text("c")
        first.on_text("d")
        first.on_end(OK)
        second.on_end(OK)
        await client.task
        assert events().text == b"<abcd>"

    virtually(test, calls=2)


def test_stream_without_output_opens_when_the_hold_ends(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        await asyncio.sleep(1.9)
        assert events().opened is None
        await asyncio.sleep(0.2)
        assert events().opened is not None
        assert (events().opened or (0, {}))[0] == client.began + 2
        assert events().sent == [b"<"]
        client.receiver.on_end(OK)
        await client.task
        assert events().text == b"<>"

    virtually(test, header_hold_seconds=2.0)


def test_failure_before_the_200_is_a_status(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        await settle()
        client.receiver.on_end(LOST)
        with pytest.raises(OpenAIError) as caught:
            await client.task
        assert caught.value.status == 503
        assert events().opened is None

    virtually(test)


def test_failure_after_the_200_is_an_event(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        client.receiver.on_end(LOST)
        await client.task
        assert events().text.startswith(b'<adata: {"error":')
        assert events().closed

    virtually(test)


def test_whole_stream_may_come_at_once(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        client.receiver.on_end(OK)
        await client.task
        assert events().text == b"<a>"

    virtually(test)


def test_failure_in_the_turn_of_the_first_output_is_an_event(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        client.receiver.on_end(LOST)
        await client.task
        assert events().text.startswith(b'<adata: {"error":')

    virtually(test)


def test_silent_stream_ticks_every_five_seconds(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await asyncio.sleep(16)
        assert [at - client.began for at in events().ticks] == [5, 10, 15]
        client.receiver.on_text("b")  # a token wakes nobody
        client.receiver.on_part(Part(b"c"))
        await settle()
        assert events().queued == [b"b", b"c"]
        await asyncio.sleep(4.5)
        assert events().sent == [b"<a", b"b", b"c"]
        client.receiver.on_end(OK)
        await client.task

    virtually(test)


def test_large_event_wakes_the_sender(virtually: Virtually) -> None:
    class Images(Stream):
        def part(self, part: Part) -> Any:
            return LargeEvent([part.output]) if part.output else b""

    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        await asyncio.sleep(1)
        for _ in range(2):
            client.receiver.on_part(Part(b"image"))
            await settle()
            assert events().sent[-1] == LargeEvent([b"image"])
            assert events().queued == []
        client.receiver.on_end(OK)
        await client.task

    virtually(test, Images())


def test_stopping_edge_fails_an_exchange(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        client.receiver.on_text("queued")
        (running,) = client.edge.exchanges
        running.fail(overloaded())
        await client.task
        assert events().text.startswith(b'<adata: {"error":')
        assert b"queued" not in events().text

    virtually(test)


def test_stopping_edge_fails_a_plain_exchange(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        (running,) = client.edge.exchanges
        running.fail(overloaded())
        with pytest.raises(OpenAIError):
            await client.task

    virtually(test, Document())


def test_client_that_leaves_a_stream_is_no_error(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        events().error = ConnectionResetError()
        client.receiver.on_end(OK)
        with pytest.raises(ConnectionResetError):
            await client.task
        assert caplog.messages == []
        assert not events().closed

    virtually(test)


def test_bug_while_a_stream_is_sent_is_logged_and_an_event(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        events().error = RuntimeError("injected")
        await asyncio.sleep(5)  # the next tick sends
        await client.task
        assert caplog.messages == ["request req_1 failed"]
        assert events().text.startswith(b'<adata: {"error":')
        assert events().queued == []
        assert events().closed

    virtually(test)


def test_bug_at_the_end_of_a_call_is_logged_and_a_500(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Stream):
        def closing(self) -> bytes:
            raise RuntimeError("injected")

    async def test(client: Client) -> None:
        client.receiver.on_part(ADMITTED)
        client.receiver.on_text("a")
        await settle()
        client.receiver.on_end(OK)
        await client.task
        assert caplog.messages == ["request req_1 failed"]
        assert events().text.startswith(b'<adata: {"error":')

    virtually(test, Broken())


# Records of the end of an exchange


TOLD = GenerateResponse(admitted=Admitted())


class Served(Stream):
    """A stream of the service's own messages."""

    def part(self, part: object) -> bytes:
        return b""


class Whole(Document):
    """A document of the service's own messages."""

    def part(self, part: object) -> bytes:
        return b""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=now))


def test_stream_tells_the_edges_own_time_of_the_first_output(
    virtually: Virtually, clock: None
) -> None:
    async def test(client: Client) -> None:
        client.request.started = now() - 1.0
        client.request.outcome = Outcome()
        client.start(runner.stream)
        await settle()
        client.receiver.on_part(TOLD)
        await asyncio.sleep(2.0)
        client.receiver.on_text("a")
        await asyncio.sleep(1.0)
        client.receiver.on_part(GenerateResponse(deltas=[ChoiceDelta(text="b")]))
        client.receiver.on_text("c")
        client.receiver.on_part(GenerateResponse(finishes=[ChoiceFinish(reason=1)]))
        # The service saw its own first output after 0.5 s, and its last 4 s later.
        client.exchange.spent = Spent(3, 7, 0.5, 4.5)
        client.receiver.on_end(OK)
        await client.task
        spent = Spent(3, 7, 3.0, 7.0)
        ended = client.edge.metrics.exchange_ended
        ended.assert_called_once_with("text_completion", "", client.request.started, "", spent)
        client.edge.metrics.cancelled.assert_not_called()
        outcome = client.request.outcome
        assert (outcome.first_seconds, outcome.spent) == (3.0, spent)
        assert (outcome.error, outcome.stage, outcome.finishes) == ("", "", [1])

    virtually(test, Served(), started=False)


def test_document_tells_the_times_of_the_service(virtually: Virtually, clock: None) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(TOLD)
        client.receiver.on_text("a")
        client.exchange.spent = Spent(3, 7, 0.5, 4.5)
        client.receiver.on_end(OK)
        await client.task
        spent = Spent(3, 7, 0.5, 4.5)
        client.edge.metrics.exchange_ended.assert_called_once_with(
            "text_completion", "", 0.0, "", spent
        )

    virtually(test, Whole())


def test_stream_without_output_tells_the_times_of_the_service(
    virtually: Virtually, clock: None
) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(TOLD)
        client.exchange.spent = Spent(3, 0, 0.5, 4.5)
        client.receiver.on_end(OK)
        await client.task
        spent = Spent(3, 0, 0.5, 4.5)
        client.edge.metrics.exchange_ended.assert_called_once_with(
            "text_completion", "", 0.0, "", spent
        )

    virtually(test, Served())


def test_first_output_may_be_a_message(virtually: Virtually, clock: None) -> None:
    async def test(client: Client) -> None:
        client.request.started = now()
        client.start(runner.stream)
        await settle()
        client.receiver.on_part(TOLD)
        for seconds, text in ((2.0, "a"), (1.0, "b")):
            await asyncio.sleep(seconds)
            client.receiver.on_part(GenerateResponse(deltas=[ChoiceDelta(text=text)]))
        client.receiver.on_text("c")
        client.exchange.spent = Spent(3, 7, 0.5, 4.5)
        client.receiver.on_end(OK)
        await client.task
        assert client.edge.metrics.exchange_ended.call_args.args[4] == Spent(3, 7, 2.0, 6.0)

    virtually(test, Served(), started=False)


@pytest.mark.parametrize("code", ["rate_limit_exceeded", None])
def test_failure_is_told_by_its_code_or_its_type(virtually: Virtually, code: str | None) -> None:
    async def test(client: Client) -> None:
        client.receiver.on_part(TOLD)
        client.receiver.on_text("a")
        await settle()
        for exchange in set(client.edge.exchanges):
            exchange.fail(OpenAIError(429, "m", type="some_type", code=code))
        await client.task
        (told,) = client.edge.metrics.exchange_ended.call_args_list
        assert told.args[3] == (code or "some_type")
        client.edge.metrics.cancelled.assert_not_called()

    virtually(test, Served())


@pytest.mark.parametrize("stage", ["waiting", "before_output", "output"])
def test_client_that_leaves_is_told_by_how_far_it_came(virtually: Virtually, stage: str) -> None:
    async def test(client: Client) -> None:
        client.request.outcome = Outcome()
        client.start(runner.stream)
        await settle()
        if stage != "waiting":
            client.receiver.on_part(TOLD)
        if stage == "output":
            client.receiver.on_text("a")
        await settle()
        client.task.cancel()
        await settle()
        client.edge.metrics.cancelled.assert_called_once_with(stage)
        (told,) = client.edge.metrics.exchange_ended.call_args_list
        assert told.args[3] == CANCELLED
        assert client.request.outcome.stage == stage

    virtually(test, Served(), started=False)


def test_exchange_that_ended_keeps_neither_calls_nor_sources(virtually: Virtually) -> None:
    async def test(client: Client) -> None:
        (running,) = client.edge.exchanges
        client.receiver.on_part(TOLD)
        client.receiver.on_end(OK)
        await client.task
        assert list(client.exchange.sources) == []
        assert running._calls == []

    virtually(test, Served())
