"""The edge's half of a session: its state alone, and its tasks around a scripted stream."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from edge.upstream.session_state import (
    DEADLINE_SLACK_SECONDS,
    MAX_OPENS_BYTES,
    REVISION,
    EdgeSession,
)
from edge.upstream.session_transport import SessionTransport
from edge.upstream.transport import SILENCE_SECONDS, CallOptions, Ended
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Frame,
    ModelLoad,
    ServiceHello,
    SessionRequest,
    SessionResponse,
    TextColumns,
)
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateRequest, GenerateResponse
from isthmus.v1.models_pb2 import Load


class Stream:
    """What a stub's Session returns."""

    def __init__(self, ended: grpc.StatusCode | None = None) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.half_closed = asyncio.Event()
        self.written: list[SessionRequest] = []
        self._ended = ended

    def __call__(self, metadata: object) -> Stream:
        return self

    async def write(self, message: SessionRequest) -> None:
        if self._ended is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        self.written.append(message)

    async def read(self) -> Any:
        return await self.incoming.get()

    async def done_writing(self) -> None:
        self.half_closed.set()

    async def code(self) -> grpc.StatusCode | None:
        return self._ended

    async def details(self) -> str:
        return ""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata

    def cancel(self) -> None:
        pass


class Owner:
    """Owns the transport and records its callbacks."""

    def __init__(self, stream: Stream) -> None:
        self.callbacks: list[str] = []
        stub: Any = type("Stub", (), {"Session": stream})
        self.transport = SessionTransport(
            stub,
            (),
            on_unsupported=lambda: self.callbacks.append("unsupported"),
            on_going_away=lambda: self.callbacks.append("going away"),
        )


async def test_stream_that_ends_before_the_first_write_reports_sessions_as_unsupported() -> None:
    owner = Owner(Stream(ended=grpc.StatusCode.UNIMPLEMENTED))
    await owner.transport.ready()
    assert owner.callbacks == ["unsupported"]


async def test_idle_session_is_half_closed_after_going_away() -> None:
    stream = Stream()
    owner = Owner(stream)
    stream.incoming.put_nowait(SessionResponse(hello=ServiceHello(revision=REVISION)))
    await owner.transport.ready()
    stream.incoming.put_nowait(SessionResponse(going_away=True))
    async with asyncio.timeout(10):
        await stream.half_closed.wait()
    assert owner.callbacks == ["going away"]
    # The service ends the stream only now.
    stream._ended = grpc.StatusCode.OK
    stream.incoming.put_nowait(grpc.aio.EOF)


class Receiver:
    """Records the end of its call; raises at it if told to."""

    def __init__(self, raises: bool = False) -> None:
        self.raises = raises
        self.ended: list[Ended] = []

    def on_text(self, text: str) -> None:
        pass

    def on_part(self, part: object) -> None:
        pass

    def on_ended(self, ended: Ended) -> None:
        self.ended.append(ended)
        if self.raises:
            raise RuntimeError("injected")


@pytest.mark.parametrize("loss", ["stream ends", "writer fails"])
async def test_every_call_of_a_lost_session_ends_although_a_receiver_raises(loss: str) -> None:
    stream = Stream()
    owner = Owner(stream)
    stream.incoming.put_nowait(SessionResponse(hello=ServiceHello(revision=REVISION)))
    assert await owner.transport.ready()
    receivers = [Receiver(raises=True), Receiver(), Receiver()]
    if loss == "writer fails":

        async def broken(message: object) -> None:
            raise RuntimeError("injected")

        stream.write = broken  # type: ignore[method-assign]
        stream.cancel = lambda: stream.incoming.put_nowait(grpc.aio.EOF)  # type: ignore[method-assign]
    for receiver in receivers:
        owner.transport.open(REQUEST, receiver, receiver.on_ended, OPTIONS)
    stream._ended = grpc.StatusCode.UNAVAILABLE
    if loss == "stream ends":
        stream.incoming.put_nowait(grpc.aio.EOF)
    async with asyncio.timeout(10):
        while not all(receiver.ended for receiver in receivers):
            await asyncio.sleep(0.005)
    assert [len(receiver.ended) for receiver in receivers] == [1, 1, 1]
    assert {receiver.ended[0].status.code for receiver in receivers} == {Code.UNAVAILABLE}
    await owner.transport.close()


# The state, without tasks and stream

OPTIONS = CallOptions(10.0, {"x-request-id": "r"}, "alice")
REQUEST = GenerateRequest(model="m", text="x")
OK = Status()
LOST = Status(code=Code.UNAVAILABLE)


def greeted(step_credit: int = 8) -> EdgeSession[str]:
    session: EdgeSession[str] = EdgeSession(0.0)
    hello = ServiceHello(revision=REVISION, step_credit=step_credit)
    assert session.greet(SessionResponse(hello=hello), 0.0)
    return session


def sent(session: EdgeSession[str], call: str) -> int:
    """Opens a call and sends it."""
    call_id = session.open(call, REQUEST, OPTIONS, 0.0)
    assert session.next_message(0.0) is not None
    return call_id


def output(call_id: int, text: str) -> SessionResponse:
    data = text.encode()
    return SessionResponse(texts=TextColumns(call_ids=[call_id], lengths=[len(data)], text=data))


def end(call_id: int, status: Status = OK) -> SessionResponse:
    return SessionResponse(frames=[Frame(call_id=call_id, status=status.SerializeToString())])


def test_other_revision_is_refused() -> None:
    session: EdgeSession[str] = EdgeSession(0.0)
    hello = SessionResponse(hello=ServiceHello(revision=REVISION + 1))
    assert not session.greet(hello, 0.0)


def test_hello_has_the_revision_and_a_new_session_has_nothing_to_send() -> None:
    session: EdgeSession[str] = EdgeSession(0.0)
    assert session.hello() == SessionRequest(hello=EdgeHello(revision=1))
    assert not session.wants_to_send
    assert not session.going_away
    session.receive(SessionResponse(step=1), 0.0)
    session.open("a", REQUEST, OPTIONS, 0.0)
    assert repr(session) == "<EdgeSession 1 calls, 1 unsent, step 1 acknowledged 0>"


def test_open_carries_the_remaining_deadline_key_id_and_metadata() -> None:
    session = greeted()
    call_id = session.open("a", REQUEST, OPTIONS, 5.0)
    message = session.next_message(7.0)
    assert message is not None
    (opened,) = message.opens
    assert (opened.call_id, opened.timeout_ms, opened.principal) == (call_id, 8_000, "alice")
    assert (opened.request, dict(opened.metadata)) == (REQUEST, {"x-request-id": "r"})
    assert session.next_message(0.0) is None


def test_open_whose_deadline_has_passed_still_carries_one() -> None:
    session = greeted()
    session.open("a", REQUEST, OPTIONS, 0.0)
    message = session.next_message(100.0)
    assert message is not None
    assert message.opens[0].timeout_ms == 1


@pytest.mark.parametrize(("size", "together"), [(1024 * 1024 - 1, 2), (1024 * 1024, 1)])
def test_message_of_opens_ends_at_one_mebibyte(size: int, together: int) -> None:
    session = greeted()
    request = GenerateRequest(text="x" * (size - 4))
    assert request.ByteSize() == size
    for _ in range(3):
        session.open("a", request, OPTIONS, 0.0)
    message = session.next_message(0.0)
    assert message is not None
    assert len(message.opens) == together


def test_large_requests_do_not_share_a_message() -> None:
    session = greeted()
    for size in (10, MAX_OPENS_BYTES, 10, 10):
        session.open("a", GenerateRequest(model="m", text="x" * size), OPTIONS, 0.0)
    first, second = session.next_message(0.0), session.next_message(0.0)
    assert first is not None
    assert second is not None
    assert [len(first.opens), len(second.opens)] == [2, 2]
    assert session.next_message(0.0) is None


@pytest.mark.parametrize(("credit", "acknowledged"), [(4, [2, 4]), (1, [1, 2, 3, 4, 5]), (8, [4])])
def test_steps_are_acknowledged_after_half_the_credit(credit: int, acknowledged: list[int]) -> None:
    session = greeted(credit)
    seen = []
    for step in range(1, 6):
        session.receive(SessionResponse(step=step), 0.0)
        if (message := session.next_message(0.0)) is not None:
            seen.append(message.acknowledged_step)
    assert seen == acknowledged


def test_texts_come_before_frames_and_nothing_follows_an_end() -> None:
    session = greeted()
    call_id = sent(session, "a")
    message = output(call_id, "é")
    message.frames.add(call_id=call_id, status=OK.SerializeToString())
    received = session.receive(message, 0.0)
    assert received.texts == [("a", "é")]
    assert received.parts == [("a", None, Ended(OK, received=True))]
    late = session.receive(output(call_id, "late"), 0.0)
    assert (late.texts, late.parts) == ([], [])


def test_frames_of_unknown_calls_are_skipped_and_those_after_them_are_read() -> None:
    session = greeted()
    call_id = sent(session, "a")
    message = end(99)
    message.frames.add(call_id=call_id, status=OK.SerializeToString())
    assert session.receive(message, 0.0).parts == [("a", None, Ended(OK, received=False))]


def test_output_in_a_frame_counts_as_received() -> None:
    session = greeted()
    call_id = sent(session, "a")
    part = GenerateResponse(deltas=[ChoiceDelta(text="x")])
    message = SessionResponse(frames=[Frame(call_id=call_id, response=part)])
    assert session.receive(message, 0.0).parts == [("a", part, None)]
    received = session.receive(end(call_id), 0.0)
    assert received.parts == [("a", None, Ended(OK, received=True))]


def test_text_columns_of_different_lengths_are_an_error() -> None:
    session = greeted()
    call_id = sent(session, "a")
    columns = TextColumns(call_ids=[call_id, call_id], lengths=[1], text=b"x")
    with pytest.raises(ValueError, match="shorter"):
        session.receive(SessionResponse(texts=columns), 0.0)


def test_cancelled_call_that_was_not_sent_is_forgotten() -> None:
    session = greeted()
    session.cancel(session.open("a", REQUEST, OPTIONS, 0.0))
    assert session.next_message(0.0) is None
    assert session.lose(LOST) == []


def test_output_after_a_cancel_is_dropped_and_the_cancel_is_sent_once() -> None:
    session = greeted()
    call_id = sent(session, "a")
    session.cancel(call_id)
    session.cancel(call_id)
    message = session.next_message(0.0)
    assert message is not None
    assert list(message.cancels) == [call_id]
    assert session.next_message(0.0) is None
    assert session.receive(output(call_id, "late"), 0.0).texts == []
    assert session.receive(end(call_id), 0.0).parts == []


def test_lost_session_knows_which_calls_were_sent_and_received() -> None:
    session = greeted()
    first = sent(session, "received")
    sent(session, "sent")
    session.receive(output(first, "x"), 0.0)
    session.open("unsent", REQUEST, OPTIONS, 0.0)
    assert dict(session.lose(LOST)) == {
        "received": Ended(LOST, sent=True, received=True),
        "sent": Ended(LOST, sent=True, received=False),
        "unsent": Ended(LOST, sent=False, received=False),
    }
    assert session.lose(LOST) == []


def test_silence_counts_only_while_calls_are_open() -> None:
    session = greeted()
    late = SILENCE_SECONDS + 1
    assert not session.silent(late)
    call_id = session.open("a", REQUEST, OPTIONS, late)
    assert not session.silent(late + SILENCE_SECONDS)
    assert session.silent(late + SILENCE_SECONDS + 0.1)
    session.receive(SessionResponse(), late + SILENCE_SECONDS + 0.1)
    assert not session.silent(late + SILENCE_SECONDS + 1)
    session.cancel(call_id)
    assert not session.silent(10 * late)


def test_hello_that_comes_late_is_no_silence() -> None:
    session: EdgeSession[str] = EdgeSession(0.0)
    session.open("a", REQUEST, OPTIONS, 0.0)
    hello = ServiceHello(revision=REVISION, step_credit=8)
    session.greet(SessionResponse(hello=hello), SILENCE_SECONDS - 1)
    assert not session.silent(SILENCE_SECONDS + 1)


def test_edge_gives_the_service_one_second_beyond_the_deadline() -> None:
    session = greeted()
    sent(session, "a")
    assert session.expire(OPTIONS.timeout_seconds + 0.9, LOST) == []
    assert len(session.expire(OPTIONS.timeout_seconds + 1.1, LOST)) == 1


def test_call_without_an_end_expires_after_its_deadline() -> None:
    session = greeted()
    call_id = sent(session, "a")
    limit = OPTIONS.timeout_seconds + DEADLINE_SLACK_SECONDS
    assert session.expire(limit, LOST) == []
    assert session.expire(limit + 0.1, LOST) == [("a", Ended(LOST))]
    message = session.next_message(0.0)
    assert message is not None
    assert list(message.cancels) == [call_id]
    assert session.expire(2 * limit, LOST) == []


def test_loads_are_those_that_were_told_last() -> None:
    session = greeted()
    assert session.loads == {}
    told = {"m": Load(running=1), "n": Load(waiting=2)}
    loads = [ModelLoad(model=model, load=load) for model, load in told.items()]
    session.receive(SessionResponse(loads=loads), 0.0)
    assert session.loads == told
    session.receive(SessionResponse(step=1), 0.0)
    assert session.loads == told
    session.receive(SessionResponse(loads=loads[:1]), 0.0)
    assert session.loads == {"m": Load(running=1)}


def test_draining_session_is_finished_when_its_last_call_ends() -> None:
    session = greeted()
    call_id = sent(session, "a")
    session.receive(SessionResponse(going_away=True), 0.0)
    assert session.going_away
    assert not session.finished
    session.receive(end(call_id), 0.0)
    assert session.finished


@pytest.mark.parametrize("seed", range(50))
def test_any_cut_into_messages_gives_the_same_output(seed: int) -> None:
    """One message for everything, or one for each step: each call receives the same."""
    dice = random.Random(seed)
    events: list[tuple[int, str | None]] = []
    unfinished = {1: 5, 2: 3, 3: 4}
    while unfinished:
        call_id = dice.choice(list(unfinished))
        unfinished[call_id] -= 1
        if unfinished[call_id]:
            events.append((call_id, dice.choice(["a", "é", "😀"])))
        else:
            events.append((call_id, None))
            del unfinished[call_id]

    def run(cuts: int) -> dict[str, str]:
        session = greeted()
        for name in ("1", "2", "3"):
            session.open(name, REQUEST, OPTIONS, 0.0)
        session.next_message(0.0)
        seen = dict.fromkeys(("1", "2", "3"), "")
        rest = list(events)
        while rest:
            count = dice.randint(1, cuts)
            taken, rest = rest[:count], rest[count:]
            message = SessionResponse()
            ended = {call_id for call_id, text in taken if text is None}
            for call_id, text in taken:
                # A call with anything but text uses frames for all of it.
                if call_id in ended:
                    frame = message.frames.add(call_id=call_id)
                    if text is None:
                        frame.status = OK.SerializeToString()
                    else:
                        frame.response.deltas.add(text=text)
                else:
                    data = str(text).encode()
                    message.texts.call_ids.append(call_id)
                    message.texts.lengths.append(len(data))
                    message.texts.text += data
            received = session.receive(message, 0.0)
            for name, text in received.texts:
                seen[name] += text
            for name, part, end_of_call in received.parts:
                seen[name] += "".join(delta.text for delta in part.deltas) if part else ""
                seen[name] += "." if end_of_call else ""
        assert session.lose(LOST) == []
        return seen

    assert run(1) == run(len(events))
