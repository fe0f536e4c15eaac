"""The tasks around the edge's half of a session: a scripted stream, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from edge.upstream.session_transport import SessionTransport
from edge.upstream.transport import Call, CallOptions, Ended
from isthmus.session.v1alpha1.session_pb2 import (
    Frame,
    ModelLoad,
    ServiceHello,
    SessionRequest,
    SessionResponse,
    TextColumns,
)
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateRequest, GenerateResponse
from isthmus.v1.models_pb2 import Load
from tests.virtual_time import now, run_virtually, settle

REQUEST = GenerateRequest(model="m", text="x")
OPTIONS = CallOptions(100.0, {}, "")
HELLO = SessionResponse(hello=ServiceHello(revision=1, step_credit=8))
END = Status().SerializeToString()


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.upstream.session_transport.time", SimpleNamespace(monotonic=now))


class Stream:
    """Stands in for the call that a stub's Session returns; it reads the messages of `send`."""

    def __init__(self) -> None:
        self.opened_with: object = None
        self.written: list[SessionRequest] = []
        self.half_closed = False
        self.cancelled = False
        self.takes_writes = True
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._status = (grpc.StatusCode.OK, "")

    def __call__(self, metadata: object) -> Stream:
        self.opened_with = metadata
        return self

    def send(self, message: SessionResponse) -> None:
        self._incoming.put_nowait(message)

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        self._status = (code, details)
        self._incoming.put_nowait(grpc.aio.EOF)

    def fail(self, code: grpc.StatusCode, details: str = "") -> None:
        nothing = grpc.aio.Metadata()
        self._incoming.put_nowait(grpc.aio.AioRpcError(code, nothing, nothing, details))

    async def write(self, message: SessionRequest) -> None:
        if not self.takes_writes:
            await asyncio.Event().wait()
        self.written.append(message)

    async def read(self) -> Any:
        message = await self._incoming.get()
        if isinstance(message, BaseException):
            raise message
        return message

    async def done_writing(self) -> None:
        self.half_closed = True

    async def code(self) -> grpc.StatusCode:
        return self._status[0]

    async def details(self) -> str:
        return self._status[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata

    def cancel(self) -> None:
        self.cancelled = True
        self._incoming.put_nowait(asyncio.CancelledError())


class Receiver:
    """Records output and the end of its call; `raises` names the method that raises."""

    def __init__(self, raises: str = "") -> None:
        self.raises = raises
        self.output: list[str] = []
        self.ended: list[Ended] = []

    def on_text(self, text: str) -> None:
        self._note("text", text)

    def on_part(self, part: GenerateResponse) -> None:
        self._note("part", part.deltas[0].text)

    def on_ended(self, ended: Ended) -> None:
        self.ended.append(ended)
        if self.raises == "end":
            raise RuntimeError("injected")

    def _note(self, method: str, text: str) -> None:
        if self.raises == method:
            raise RuntimeError("injected")
        self.output.append(text)

    @property
    def status(self) -> tuple[int, str]:
        (ended,) = self.ended
        return ended.status.code, ended.status.message


class Edge:
    """A transport whose streams are scripted."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.callbacks: list[str] = []
        stub: Any = SimpleNamespace(Session=self._session)
        self.transport = SessionTransport(
            stub,
            (("authorization", "x"),),
            on_unsupported=lambda: self.callbacks.append("unsupported"),
            on_going_away=lambda: self.callbacks.append("going away"),
        )

    def _session(self, metadata: object) -> Stream:
        self.streams.append(Stream()(metadata))
        return self.streams[-1]

    @property
    def stream(self) -> Stream:
        return self.streams[-1]

    async def greeted(self) -> Stream:
        """The stream of a new session whose hello has come."""
        ready = asyncio.create_task(self.transport.ready())
        await settle()
        self.stream.send(HELLO)
        assert await ready
        return self.stream

    def open(self, receiver: Receiver, options: CallOptions = OPTIONS) -> Call:
        return self.transport.open(REQUEST, receiver, receiver.on_ended, options)


def virtually(test: Callable[[Edge], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        edge = Edge()
        await test(edge)
        await edge.transport.close()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(run())


def text(call_id: int, text: str) -> SessionResponse:
    data = text.encode()
    return SessionResponse(texts=TextColumns(call_ids=[call_id], lengths=[len(data)], text=data))


def part(call_id: int, text: str) -> SessionResponse:
    response = GenerateResponse(deltas=[ChoiceDelta(text=text)])
    return SessionResponse(frames=[Frame(call_id=call_id, response=response)])


def end(*call_ids: int) -> SessionResponse:
    return SessionResponse(frames=[Frame(call_id=call_id, status=END) for call_id in call_ids])


def test_call_is_opened_answered_and_ended() -> None:
    async def test(edge: Edge) -> None:
        assert edge.transport.failure is None
        stream = await edge.greeted()
        assert stream.opened_with == (("authorization", "x"),)
        assert edge.transport.failure is None
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        hello, opened = stream.written
        assert hello.HasField("hello")
        assert opened.opens[0].request == REQUEST
        stream.send(text(1, "a"))
        stream.send(part(1, "b"))
        stream.send(end(1))
        await settle()
        assert receiver.output == ["a", "b"]
        assert receiver.status == (Code.OK, "")
        assert not stream.half_closed
        assert len(stream.written) == 2

    virtually(test)


def test_steps_are_acknowledged_although_no_call_opens_or_ends() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        for step in range(1, 9):
            stream.send(SessionResponse(step=step))
            await settle()
        assert [message.acknowledged_step for message in stream.written[1:]] == [4, 8]

    virtually(test)


def test_loads_are_those_that_the_session_was_told() -> None:
    async def test(edge: Edge) -> None:
        assert edge.transport.loads == {}
        stream = await edge.greeted()
        assert edge.transport.loads == {}
        stream.send(SessionResponse(loads=[ModelLoad(model="m", load=Load(running=2))]))
        await settle()
        assert edge.transport.loads == {"m": Load(running=2)}

    virtually(test)


def test_hello_that_does_not_come_within_five_seconds_fails_the_session() -> None:
    async def test(edge: Edge) -> None:
        receiver = Receiver()
        began = now()
        edge.open(receiver)
        assert not await edge.transport.ready()
        assert now() - began == 5.0
        assert receiver.status == (Code.UNAVAILABLE, "No hello came.")
        assert not receiver.ended[0].sent
        assert edge.transport.failure == receiver.ended[0].status
        assert edge.stream.cancelled
        assert edge.callbacks == []

    virtually(test)


def test_call_that_waits_for_the_hello_has_its_deadline() -> None:
    async def test(edge: Edge) -> None:
        receiver = Receiver()
        edge.open(receiver, CallOptions(1.5, {}, ""))
        await asyncio.sleep(2.4)
        assert not receiver.ended
        await asyncio.sleep(0.7)
        assert receiver.status == (Code.DEADLINE_EXCEEDED, "No answer came.")

    virtually(test)


def test_hello_with_another_revision_reports_sessions_as_unsupported() -> None:
    async def test(edge: Edge) -> None:
        ready = asyncio.create_task(edge.transport.ready())
        await settle()
        edge.stream.send(SessionResponse(hello=ServiceHello(revision=2)))
        assert not await ready
        assert edge.callbacks == ["unsupported"]
        assert edge.stream.cancelled

    virtually(test)


@pytest.mark.parametrize("how", ["end", "fail"])
@pytest.mark.parametrize("greeted", [True, False])
def test_lost_stream_ends_its_calls_with_its_status(how: str, greeted: bool) -> None:
    async def test(edge: Edge) -> None:
        receiver = Receiver()
        if greeted:
            await edge.greeted()
        edge.open(receiver)
        await settle()
        getattr(edge.stream, how)(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        await settle()
        assert receiver.status == (Code.RESOURCE_EXHAUSTED, "enough")
        assert receiver.ended[0].sent == greeted
        assert not receiver.ended[0].silent
        assert edge.transport.failure == receiver.ended[0].status
        assert not await asyncio.wait_for(edge.transport.ready(), 10)  # a new one, without hello
        assert len(edge.streams) == 2

    virtually(test)


@pytest.mark.parametrize("how", ["end", "fail"])
def test_service_without_sessions_is_unsupported(how: str) -> None:
    async def test(edge: Edge) -> None:
        ready = asyncio.create_task(edge.transport.ready())
        await settle()
        getattr(edge.stream, how)(grpc.StatusCode.UNIMPLEMENTED)
        assert not await ready
        assert edge.callbacks == ["unsupported"]

    virtually(test)


def test_stream_that_ends_well_while_a_call_is_open_is_a_loss() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        stream.end(grpc.StatusCode.OK)
        await settle()
        assert receiver.status == (Code.UNAVAILABLE, "The session ended.")

    virtually(test)


def test_draining_session_runs_its_calls_to_the_end_and_new_ones_get_another() -> None:
    async def test(edge: Edge) -> None:
        first = await edge.greeted()
        old, new = Receiver(), Receiver()
        edge.open(old)
        await settle()
        assert edge.callbacks == []
        first.send(SessionResponse(going_away=True))
        await settle()
        assert edge.callbacks == ["going away"]
        assert not first.half_closed
        edge.open(new)
        await settle()
        assert len(edge.streams) == 2
        first.send(end(1))
        await settle()
        assert old.status == (Code.OK, "")
        assert first.half_closed
        first.end(grpc.StatusCode.OK)
        edge.stream.send(HELLO)
        edge.stream.send(end(1))
        await settle()
        assert new.status == (Code.OK, "")

    virtually(test)


def test_silent_service_loses_its_calls_after_fifteen_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        await asyncio.sleep(100)  # idle time is no silence
        receiver = Receiver()
        edge.open(receiver)
        await asyncio.sleep(14.9)
        stream.send(SessionResponse())
        await asyncio.sleep(14.9)
        assert not receiver.ended
        await asyncio.sleep(1.5)
        assert receiver.status == (Code.UNAVAILABLE, "The service was silent.")
        assert receiver.ended[0].silent
        assert stream.cancelled
        assert caplog.messages == ["the session made no progress for 15 s; ending it"]

    virtually(test)


def test_service_that_writes_but_does_not_read_loses_its_calls() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        edge.open(receiver)
        for _ in range(10):
            stream.send(SessionResponse())
            await asyncio.sleep(5)
        assert not receiver.ended
        stream.takes_writes = False
        second = Receiver()
        edge.open(second)
        for _ in range(3):
            stream.send(SessionResponse())
            await asyncio.sleep(4.9)
        stream.send(SessionResponse())
        await asyncio.sleep(0.8)
        assert not receiver.ended  # a look was made exactly 15 s after
        await asyncio.sleep(1)
        for lost in (receiver, second):
            assert lost.status == (Code.UNAVAILABLE, "The service was silent.")
            assert lost.ended[0].silent

    virtually(test)


def test_call_whose_end_the_service_misses_ends_and_is_cancelled_once() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        late, other = Receiver(), Receiver()
        edge.open(late, CallOptions(3.0, {}, ""))
        edge.open(other)
        await asyncio.sleep(3.9)
        assert not late.ended
        await asyncio.sleep(1.2)
        assert late.status == (Code.DEADLINE_EXCEEDED, "No answer came.")
        await settle()
        assert [list(message.cancels) for message in stream.written[1:]] == [[], [1]]
        stream.send(text(1, "late"))
        stream.send(text(2, "in time"))
        stream.send(end(1, 2))
        await settle()
        assert (late.output, other.output) == ([], ["in time"])
        assert len(late.ended) == 1
        assert other.status == (Code.OK, "")

    virtually(test)


def test_cancelled_call_gets_neither_output_nor_an_end() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        call = edge.open(receiver)
        await settle()
        call.cancel()
        call.cancel()
        await settle()
        assert [list(message.cancels) for message in stream.written[1:]] == [[], [1]]
        stream.send(text(1, "x"))
        stream.send(end(1))
        await settle()
        call.cancel()
        await settle()
        assert (receiver.output, receiver.ended) == ([], [])
        assert len(stream.written) == 3

    virtually(test)


def test_receiver_that_cancels_at_its_first_text_gets_nothing_of_the_same_message() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        call = edge.open(receiver)
        await settle()

        def on_text(text: str) -> None:
            receiver.output.append(text)
            call.cancel()

        receiver.on_text = on_text  # type: ignore[method-assign]
        message = SessionResponse(
            texts=TextColumns(call_ids=[1, 1], lengths=[1, 1], text=b"ab"),
        )
        message.MergeFrom(part(1, "c"))
        message.MergeFrom(end(1))
        stream.send(message)
        await settle()
        assert (receiver.output, receiver.ended) == (["a"], [])

    virtually(test)


@pytest.mark.parametrize("method", ["text", "part"])
def test_receiver_that_raises_loses_its_call_and_no_other(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        broken, other = Receiver(raises=method), Receiver()
        edge.open(broken)
        edge.open(other)
        await settle()
        message = text(1, "a") if method == "text" else part(1, "a")
        message.MergeFrom(part(2, "b"))
        stream.send(message)
        await settle()
        assert broken.status == (Code.INTERNAL, "A receiver failed.")
        assert list(stream.written[-1].cancels) == [1]
        assert other.output == ["b"]
        stream.send(end(1, 2))
        await settle()
        assert len(broken.ended) == 1
        assert other.status == (Code.OK, "")
        assert caplog.messages == ["a receiver failed; its call is cancelled"]

    virtually(test)


def test_receiver_that_raised_gets_nothing_more_of_the_same_message() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        broken = Receiver(raises="text")
        edge.open(broken)
        await settle()
        message = text(1, "a")
        message.MergeFrom(part(1, "b"))
        message.MergeFrom(end(1))
        stream.send(message)
        await settle()
        assert broken.output == []
        assert broken.status == (Code.INTERNAL, "A receiver failed.")

    virtually(test)


def test_receiver_that_cancels_and_raises_gets_no_end() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        call = edge.open(receiver)
        await settle()

        def on_text(text: str) -> None:
            call.cancel()
            raise RuntimeError("injected")

        receiver.on_text = on_text  # type: ignore[method-assign]
        stream.send(text(1, "a"))
        await settle()
        assert receiver.ended == []
        assert [list(message.cancels) for message in stream.written[2:]] == [[1]]

    virtually(test)


def test_receiver_that_raises_at_its_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        broken, other = Receiver(raises="end"), Receiver()
        edge.open(broken)
        edge.open(other)
        await settle()
        stream.send(end(1, 2))
        await settle()
        assert other.status == (Code.OK, "")
        assert caplog.messages == ["a receiver failed at the end of its call"]

    virtually(test)


def test_exception_in_the_reader_is_logged_and_ends_every_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        stream.send(SessionResponse(texts=TextColumns(call_ids=[1, 1], lengths=[1], text=b"a")))
        await settle()
        assert receiver.status == (Code.UNAVAILABLE, "The session ended.")
        assert caplog.messages == ["a session failed"]
        assert stream.cancelled

    virtually(test)


def test_exception_in_the_writer_is_logged_and_ends_every_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()

        async def write(message: SessionRequest) -> None:
            raise RuntimeError("injected")

        stream.write = write  # type: ignore[method-assign]
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        assert receiver.status == (Code.UNAVAILABLE, "The session ended.")
        assert caplog.messages == ["a session's task failed; ending the session"]
        assert caplog.records[0].levelno == logging.ERROR

    virtually(test)


@pytest.mark.parametrize(
    "error",
    [
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
        grpc.aio.InternalError(),
        asyncio.InvalidStateError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_writer_that_finds_the_stream_ended_leaves_the_status_to_the_reader(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()

        async def write(message: SessionRequest) -> None:
            raise error

        stream.write = write  # type: ignore[method-assign]
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        assert not receiver.ended
        stream.end(grpc.StatusCode.UNAVAILABLE, "gone")
        await settle()
        assert receiver.status == (Code.UNAVAILABLE, "gone")
        assert caplog.messages == []

    virtually(test)


def test_closing_ends_every_call() -> None:
    async def test(edge: Edge) -> None:
        stream = await edge.greeted()
        receiver = Receiver()
        edge.open(receiver)
        await settle()
        await edge.transport.close()
        assert receiver.status == (Code.UNAVAILABLE, "The session ended.")
        assert stream.cancelled

    virtually(test)
