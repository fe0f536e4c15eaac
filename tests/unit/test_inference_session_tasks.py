"""The tasks around the service's half of a session: a scripted stream, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from inference.config import ModelConfig
from inference.engines import create_engine
from inference.errors import InferenceError
from inference.registry import Registry, ServedModel
from inference.rpc import CallContext
from inference.session import SessionService
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Frame,
    Open,
    ServiceHello,
    SessionRequest,
    SessionResponse,
)
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.virtual_time import now, run_virtually, settle

HELLO = SessionRequest(hello=EdgeHello(revision=1))
OK = Status().SerializeToString()


@dataclass
class Running:
    """A call in the service, as `run` sees it."""

    context: CallContext
    outbox: Any
    end: asyncio.Future[InferenceError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    cancelled: bool = False
    seconds_to_stop: float = 0.0


class AbortedError(Exception):
    """The exception that grpc raises after an abort."""


class Service:
    """A session whose stream and calls are scripted."""

    def __init__(self) -> None:
        config = ModelConfig(id="m", engine="scripted")
        self.registry = Registry([ServedModel(config, create_engine(config))])
        self.calls: dict[str, Running] = {}
        self.written: list[SessionResponse] = []
        self.aborted_with: tuple[grpc.StatusCode, str] | None = None
        self.slow = asyncio.Event()
        self.slow.set()
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.session: asyncio.Task[None]

    def start(self) -> None:
        context: Any = self
        self.session = asyncio.create_task(SessionService(self.registry).Session(None, context))

    def send(self, message: object) -> None:
        self._incoming.put_nowait(message)

    async def open(self, *names: str, **more: Any) -> None:
        """Opens calls with the ids 1, 2, ..."""
        first = len(self.calls) + 1
        self.send(
            SessionRequest(
                opens=[
                    Open(call_id=first + n, request=GenerateRequest(request_id=name), **more)
                    for n, name in enumerate(names)
                ]
            )
        )
        await settle()

    async def run(
        self, registry: Registry, request: GenerateRequest, context: CallContext, outbox: Any
    ) -> InferenceError | None:
        assert registry is self.registry
        call = self.calls[request.request_id] = Running(context, outbox)
        try:
            return await call.end
        except asyncio.CancelledError:
            await asyncio.sleep(call.seconds_to_stop)
            call.cancelled = True
            raise

    # The methods of a grpc.aio context that SessionService calls.

    async def read(self) -> Any:
        message = await self._incoming.get()
        if isinstance(message, BaseException):
            raise message
        return message

    async def write(self, message: SessionResponse) -> None:
        await self.slow.wait()
        if message.loads and message == SessionResponse(loads=message.loads):
            return
        message.ClearField("loads")
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str, trailers: object) -> None:
        self.aborted_with = code, details
        raise AbortedError


@pytest.fixture
def virtually(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[Service], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            service = Service()
            monkeypatch.setattr("inference.session.run", service.run)
            service.start()
            await settle()
            await test(service)
            if not service.session.done():
                service.session.cancel()
            await settle()
            assert service.session.done()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert service.registry.running_calls == 0

        run_virtually(main())

    return run


Virtually = Callable[[Callable[[Service], Coroutine[Any, Any, None]]], None]


def status(message: SessionResponse, call_id: int) -> Status:
    (frame,) = [frame for frame in message.frames if frame.call_id == call_id]
    return Status.FromString(frame.status)


@pytest.mark.parametrize("first", [SessionRequest(), grpc.aio.EOF], ids=["other", "nothing"])
def test_stream_that_does_not_begin_with_a_hello_is_refused(
    virtually: Virtually, first: object
) -> None:
    async def test(service: Service) -> None:
        service.send(first)
        await settle()
        assert service.aborted_with == (grpc.StatusCode.INVALID_ARGUMENT, "Expected a hello.")
        assert isinstance(service.session.exception(), AbortedError)

    virtually(test)


def test_hello_is_awaited_for_ten_seconds(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        await asyncio.sleep(9.9)
        assert not service.session.done()
        await asyncio.sleep(0.2)
        assert service.aborted_with == (grpc.StatusCode.INVALID_ARGUMENT, "Expected a hello.")
        service.session.exception()

    virtually(test)


def test_hello_is_answered_with_the_models(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await settle()
        hello = ServiceHello(revision=1, models=["m"], step_credit=8, pulse_ms=5000)
        assert service.written == [SessionResponse(hello=hello)]
        assert not service.session.done()

    virtually(test)


def test_opens_beside_the_hello_run(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        first = SessionRequest(hello=EdgeHello(revision=1), opens=[Open(call_id=1)])
        service.send(first)
        await settle()
        assert list(service.calls) == [""]

    virtually(test)


def test_call_has_the_context_of_its_open(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", timeout_ms=1500, principal="p", metadata={"x-priority": "7"})
        await service.open("b")
        assert service.calls["a"].context == CallContext("a", 1.5, 7, "p")
        assert service.calls["b"].context == CallContext("b", 3600.0, 0, "")
        assert service.registry.running_calls == 2

    virtually(test)


@pytest.mark.parametrize(("size", "priority"), [(2048, 7), (2049, 0)])
def test_metadata_beyond_two_kibibytes_is_ignored(
    virtually: Virtually, size: int, priority: int
) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        metadata = {"x-priority": "7", "x-pad": ""}
        metadata["x-pad"] = "x" * (size - len("x-priority") - 1 - len("x-pad"))
        await service.open("a", metadata=metadata)
        assert service.calls["a"].context.priority == priority

    virtually(test)


def test_output_and_end_are_sent_without_waiting(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b")
        began = now()
        service.calls["a"].outbox.text("x")
        await settle()
        assert service.written[1].texts.text == b"x"
        service.calls["a"].end.set_result(None)
        service.calls["b"].end.set_result(
            InferenceError("queue_timeout", "Too late.", retry_after_ms=1000)
        )
        await settle()
        (both,) = service.written[2:]
        assert status(both, 1) == Status()
        assert status(both, 2).code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert status(both, 2).message == "Too late."
        assert now() == began
        assert service.registry.running_calls == 0

    virtually(test)


def test_output_of_one_engine_step_leaves_in_one_message(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b", "c")
        service.calls["a"].outbox.text("a")
        asyncio.get_running_loop().call_soon(service.calls["b"].outbox.text, "b")

        async def later() -> None:
            await asyncio.sleep(0)
            service.calls["c"].outbox.text("c")

        await later()
        await settle()
        assert [list(message.texts.call_ids) for message in service.written[1:]] == [[1, 2, 3]]

    virtually(test)


def test_without_credit_nothing_is_sent_until_an_acknowledgement(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        for _ in range(12):
            service.calls["a"].outbox.text("x")
            await settle()
        assert len(service.written) == 1 + 8
        service.send(SessionRequest(acknowledged_step=1))
        await settle()
        assert service.written[9].texts.text == b"xxxx"
        metrics = service.registry.metrics
        assert (metrics.session_steps.value, metrics.session_stalls.value) == (9, 1)

    virtually(test)


def test_cancelled_call_stops_and_ends_as_cancelled(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b")
        service.slow.clear()
        service.calls["b"].outbox.text("y")
        await settle()
        service.calls["a"].outbox.text("x")
        service.send(SessionRequest(cancels=[1, 9]))
        await settle()
        assert service.calls["a"].cancelled
        assert not service.calls["b"].cancelled
        service.slow.set()
        await settle()
        cancelled = Status(code=1, message="The caller cancelled.")
        assert status(service.written[-1], 1) == cancelled
        assert not service.written[-1].frames[0].HasField("response")
        assert service.registry.running_calls == 1

    virtually(test)


def test_time_from_a_cancel_to_the_end_is_measured(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b")
        service.calls["a"].seconds_to_stop = 2.0
        service.send(SessionRequest(cancels=[1]))
        await asyncio.sleep(3.0)
        service.calls["b"].end.set_result(None)
        await settle()
        aborts = service.registry.metrics.aborts
        aborts.fold()
        assert (aborts.counts[-1], aborts.sum) == (1, 2.0)

    virtually(test)


def test_open_sessions_are_counted(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        metrics = service.registry.metrics
        assert metrics.sessions == 0
        service.send(HELLO)
        await settle()
        assert metrics.sessions == 1
        service.session.cancel()
        await settle()
        assert metrics.sessions == 0

    virtually(test)


def test_lost_session_holds_no_memory(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        service.calls["a"].outbox.text("x" * 1_000_000)
        assert service.registry.memory.used == 1_000_000
        service.session.cancel()
        await settle()
        assert service.registry.memory.used == 0

    virtually(test)


def test_call_cancelled_in_the_message_that_opens_it_still_ends(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        service.send(SessionRequest(opens=[Open(call_id=1)], cancels=[1]))
        await settle()
        assert service.calls == {}
        assert status(service.written[-1], 1).code == 1

    virtually(test)


def test_cancel_of_a_call_that_ends_in_the_same_turn_is_nothing(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b")
        service.slow.clear()
        service.calls["b"].outbox.text("x")
        await settle()
        service.calls["a"].end.set_result(None)
        await settle()  # its end waits for the writer
        service.send(SessionRequest(cancels=[1]))
        await settle()
        service.slow.set()
        await settle()
        assert status(service.written[-1], 1) == Status()
        assert not service.session.done()

    virtually(test)


def test_used_id_is_ignored_and_logged(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        again = Open(call_id=1, request=GenerateRequest(request_id="again"))
        service.send(SessionRequest(opens=[again]))
        await settle()
        assert list(service.calls) == ["a"]
        assert caplog.messages == ["session: call id 1 was used before; ignored"]

    virtually(test)


def test_half_closed_session_ends_with_its_last_call(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        service.send(grpc.aio.EOF)
        await settle()
        assert not service.session.done()
        service.calls["a"].end.set_result(None)
        await settle()
        assert service.written[-1].frames == [Frame(call_id=1, status=OK)]
        assert service.session.done()
        assert service.session.exception() is None

    virtually(test)


def test_idle_session_ends_when_it_is_half_closed(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await settle()
        service.send(grpc.aio.EOF)
        await settle()
        assert service.session.done()

    virtually(test)


def test_edge_that_breaks_the_stream_half_closes_it(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await settle()
        service.send(grpc.aio.InternalError())
        await settle()
        assert service.session.done()

    virtually(test)


def test_drain_is_told_once_and_running_calls_go_on(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        service.registry.draining.set()
        await settle()
        assert service.written[1:] == [SessionResponse(going_away=True)]
        service.calls["a"].end.set_result(None)
        await settle()
        assert service.written[2].frames == [Frame(call_id=1, status=OK)]
        assert not service.session.done()

    virtually(test)


def test_lost_session_cancels_its_calls(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a", "b")
        service.session.cancel()
        await settle()
        assert service.calls["a"].cancelled
        assert service.calls["b"].cancelled

    virtually(test)


def test_session_ends_after_its_calls_have_stopped(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        service.calls["a"].seconds_to_stop = 3.0
        service.session.cancel()
        await asyncio.sleep(2.9)
        assert not service.session.done()
        await asyncio.sleep(0.2)
        assert service.session.done()

    virtually(test)


def test_session_keeps_nothing_of_a_call_that_has_ended(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await settle()
        before = asyncio.all_tasks()
        await service.open("a")
        (task,) = (weakref.ref(task) for task in asyncio.all_tasks() - before)
        service.calls["a"].end.set_result(None)
        await settle()
        gc.collect()
        assert task() is None

    virtually(test)


def test_write_may_take_thirty_seconds(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await service.open("a")
        await asyncio.sleep(3)
        for seconds in (29, 29):
            service.slow.clear()
            service.calls["a"].outbox.text("x")
            await asyncio.sleep(seconds)
            service.slow.set()
            await settle()
        assert not service.session.done()
        service.slow.clear()
        service.calls["a"].outbox.text("x")
        await asyncio.sleep(29.9)
        assert not service.session.done()
        await asyncio.sleep(0.2)
        assert isinstance(service.session.exception(), TimeoutError)
        assert service.calls["a"].cancelled

    virtually(test)


def test_pulse_comes_five_seconds_after_the_last_message(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.send(HELLO)
        await asyncio.sleep(61)
        assert len(service.written) == 1  # an idle session has no pulse
        await service.open("a")
        await asyncio.sleep(2)
        service.calls["a"].outbox.text("x")
        await settle()
        sent = now()
        await asyncio.sleep(4.9)
        assert len(service.written) == 2
        await asyncio.sleep(0.2)
        assert service.written[2:] == [SessionResponse()]
        await asyncio.sleep(sent + 15.1 - now())
        assert service.written[2:] == [SessionResponse()] * 3
        service.calls["a"].end.set_result(None)
        await asyncio.sleep(60)
        assert len(service.written) == 6

    virtually(test)
