"""The service's half of a session: its tasks around a scripted stream, and its state alone."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest
from google.rpc.status_pb2 import Status

from contract.memory import SMALL_BYTES, MemoryBudget
from edge.upstream.session_state import EdgeSession
from edge.upstream.transport import CallOptions, Ended
from inference.config import ModelConfig
from inference.engines import create_engine
from inference.errors import InferenceError
from inference.registry import Registry, ServedModel
from inference.session import WRITE_SECONDS, SessionService
from inference.session_state import (
    MAX_STEP_BYTES,
    MAX_WAITING_BYTES,
    PULSE_SECONDS,
    REVISION,
    STEP_CREDIT,
    ServiceSession,
)
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Frame,
    Open,
    ServiceHello,
    SessionRequest,
    SessionResponse,
)
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateRequest, GenerateResponse
from isthmus.v1.usage_pb2 import Admitted
from tests.virtual_time import now, run_virtually

OK = Status().SerializeToString()
LOST = Status(code=1).SerializeToString()
MIB = 1024 * 1024
_HANG = '{"fail": "hang"}'


class _Wire:
    """An edge that opens one call and acknowledges nothing.

    Args:
        text: The prompt of the call; None opens no call.
        takes: Messages that it takes; later writes never return.
    """

    def __init__(self, text: str | None, takes: int) -> None:
        self._takes = takes
        self._reads = [SessionRequest(hello=EdgeHello(revision=1))]
        if text is not None:
            opened = Open(call_id=1, request=GenerateRequest(model="m", text=text))
            self._reads.append(SessionRequest(opens=[opened]))
        self.written: list[tuple[float, SessionResponse]] = []

    async def read(self) -> SessionRequest | None:
        if not self._reads:
            await asyncio.Event().wait()
        return self._reads.pop(0)

    async def write(self, message: SessionResponse) -> None:
        if len(self.written) == self._takes:
            await asyncio.Event().wait()
        self.written.append((now(), message))


async def _serve(wire: _Wire) -> None:
    config = ModelConfig(id="m", engine="scripted")
    served = ServedModel(config, create_engine(config))
    served.started = True
    await SessionService(Registry([served])).Session(None, wire)  # type: ignore[arg-type]


def _written(wire: _Wire, seconds: float) -> list[tuple[float, SessionResponse]]:
    """Reads the bytes that are written within so many virtual seconds."""

    async def serve() -> None:
        await asyncio.wait([asyncio.create_task(_serve(wire))], timeout=seconds)

    run_virtually(serve())
    return wire.written


def test_admission_and_first_output_leave_in_one_message() -> None:
    ((_, hello), *rest) = _written(_Wire("x", takes=100), seconds=1)
    assert hello.HasField("hello")
    first = next(message for _, message in rest if not message.loads)
    (frame,) = first.frames
    assert frame.response.HasField("admitted")
    assert frame.response.deltas[0].text


def test_pulses_are_sent_only_while_a_call_is_open() -> None:
    written = _written(_Wire(_HANG, takes=100), seconds=60)
    last = max(at for at, message in written if message != SessionResponse())
    pulses = [at - last for at, message in written if message == SessionResponse()]
    assert pulses == pytest.approx([PULSE_SECONDS * n for n in range(1, len(pulses) + 1)])
    assert PULSE_SECONDS * (len(pulses) + 1) > 59
    idle = _written(_Wire(None, takes=100), seconds=60)
    assert [bool(message.loads) for _, message in idle] == [False, True]


def test_session_ends_when_the_edge_takes_no_message() -> None:
    async def serve() -> None:
        began = now()
        with pytest.raises(TimeoutError):
            await _serve(_Wire(_HANG, takes=2))
        assert now() - began == pytest.approx(WRITE_SECONDS)

    run_virtually(serve())


# The state, without tasks and stream


def opened(*call_ids: int) -> SessionRequest:
    return SessionRequest(opens=[Open(call_id=call_id) for call_id in call_ids])


def session() -> ServiceSession:
    return ServiceSession(lambda: None, 0.0, MemoryBudget(1 << 30))


def everything(state: ServiceSession, now: float = 0.0) -> list[SessionResponse]:
    messages = []
    while (message := state.next_message(now)) is not None:
        messages.append(message)
    return messages


def test_hello_speaks_the_lower_revision() -> None:
    for revision, spoken in ((0, 0), (REVISION, REVISION), (REVISION + 1, REVISION)):
        first = SessionRequest(hello=EdgeHello(revision=revision))
        assert ServiceSession.hello(first, ["m"]).hello.revision == spoken


def test_hello_tells_the_revision_the_models_the_credit_and_the_pulse() -> None:
    hello = ServiceSession.hello(SessionRequest(hello=EdgeHello(revision=9)), ["m", "n"]).hello
    assert hello == ServiceHello(revision=1, models=["m", "n"], step_credit=8, pulse_ms=5000)


def test_acknowledgement_wakes_the_writer_only_if_there_is_output() -> None:
    woken: list[int] = []
    state = ServiceSession(lambda: woken.append(1), 0.0, MemoryBudget(1 << 30))
    state.receive(opened(1))
    state.receive(SessionRequest(acknowledged_step=1))
    assert not woken
    state.outbox(1).text("x")
    woken.clear()
    state.receive(SessionRequest(acknowledged_step=2))
    assert woken
    woken.clear()
    state.receive(SessionRequest(cancels=[9]))
    assert not woken


@pytest.mark.parametrize(("size", "together"), [(MIB - 8, True), (MIB - 7, False)])
def test_step_of_text_ends_after_one_mebibyte(size: int, together: bool) -> None:
    state = session()
    state.receive(opened(1, 2))
    state.outbox(1).text("x" * size)  # and 8 bytes of columns
    state.outbox(2).text("x")
    assert len(everything(state)) == (1 if together else 2)


@pytest.mark.parametrize("over", [False, True])
def test_step_of_frames_ends_after_one_mebibyte(over: bool) -> None:
    state = session()
    state.receive(opened(1, 2))
    part = GenerateResponse(deltas=[ChoiceDelta(index=1)])
    frame = Frame(call_id=1, response=part)
    while frame.ByteSize() < MIB - 1 + over:
        missing = MIB - 1 + over - frame.ByteSize()
        part.deltas[0].text += "x" * max(1, missing - 20)
        frame.response.CopyFrom(part)
    assert frame.ByteSize() == MIB - 1 + over
    state.outbox(1).part(part)  # and one byte of its key
    state.outbox(2).text("x")
    assert len(everything(state)) == (2 if over else 1)


def test_session_holds_sixteen_mebibytes_before_a_call_ends() -> None:
    state = session()
    calls = range(1, 17)
    state.receive(opened(*calls, 17))
    for _ in range(2):  # what was sent no longer counts
        for call_id in calls:
            state.outbox(call_id).text("x" * (MIB - 1))
        state.outbox(17).text("x" * 14)
        state.outbox(1).text("xx")
        everything(state)
        state.half_close()
    for call_id in calls:
        state.outbox(call_id).text("x" * (MIB - 1))
    state.outbox(17).text("x" * 14)
    state.end(17, OK)
    state.outbox(1).text("xx")  # exactly 16 MiB
    with pytest.raises(InferenceError) as caught:
        state.outbox(2).text("x")
    assert caught.value.reason == "slow_reader"


def test_call_with_exactly_its_share_goes_on() -> None:
    state = session()
    calls = range(1, 18)
    state.receive(opened(*calls))
    for call_id in calls:
        state.outbox(call_id).text("x" * (999_999 if call_id == 2 else 1_000_000))
    # 17,000,000 bytes will wait for 17 calls, of which this one holds 1,000,000 before.
    state.outbox(1).text("x")
    with pytest.raises(InferenceError):
        state.outbox(1).text("x")


def test_state_shows_calls_bytes_and_steps() -> None:
    state = session()
    state.receive(opened(1, 2))
    state.outbox(1).text("abc")
    everything(state)
    state.outbox(2).text("ab")
    shown = "<ServiceSession 2 calls, 2 bytes waiting, step 1 acknowledged 0>"
    assert repr(state) == shown


def test_used_call_id_is_ignored() -> None:
    state = session()
    assert state.receive(opened(0)).repeated == [0]
    assert [o.call_id for o in state.receive(opened(1, 3)).opens] == [1, 3]
    received = state.receive(opened(2, 3, 4))
    assert ([o.call_id for o in received.opens], received.repeated) == ([4], [2, 3])


def test_only_open_calls_can_be_cancelled() -> None:
    state = session()
    state.receive(opened(1))
    assert state.receive(SessionRequest(cancels=[1, 2])).cancels == [1]
    state.end(1, b"")
    everything(state)
    assert state.receive(SessionRequest(cancels=[1])).cancels == []


def test_all_calls_share_one_step_and_plain_text_travels_as_columns() -> None:
    state = session()
    state.receive(opened(1, 2, 3))
    state.outbox(1).text("a")
    state.outbox(2).part(GenerateResponse(deltas=[ChoiceDelta(index=1, text="b")]))
    state.outbox(3).text("é")
    (message,) = everything(state)
    assert list(message.texts.call_ids) == [1, 3]
    assert (list(message.texts.lengths), message.texts.text.decode()) == ([1, 2], "aé")
    (frame,) = message.frames
    assert frame.call_id == 2


def test_without_credit_output_is_merged_until_a_step_is_acknowledged() -> None:
    state = session()
    state.receive(opened(1))
    outbox = state.outbox(1)
    for _ in range(STEP_CREDIT + 3):
        outbox.text("x")
        everything(state)
    assert everything(state) == []
    state.receive(SessionRequest(acknowledged_step=1))
    (message,) = everything(state)
    assert message.texts.text == b"xxx"


def test_half_closed_edge_needs_no_credit_and_ends_the_stream_with_its_last_call() -> None:
    state = session()
    state.receive(opened(1))
    state.half_close()
    outbox = state.outbox(1)
    for _ in range(STEP_CREDIT + 3):
        outbox.text("x")
        assert len(everything(state)) == 1
    assert not state.finished
    state.end(1, b"")
    assert not state.finished
    assert len(everything(state)) == 1
    assert state.finished


def test_large_steps_are_split_between_calls() -> None:
    state = session()
    state.receive(opened(*range(1, 6)))
    for call_id in range(1, 6):
        state.outbox(call_id).text("x" * (MAX_STEP_BYTES // 2))
    steps = everything(state)
    assert [len(message.texts.call_ids) for message in steps] == [2, 2, 1]
    assert [message.step for message in steps] == [1, 2, 3]


def test_session_bound_ends_only_calls_that_hold_more_than_their_share() -> None:
    state = session()
    calls = MAX_WAITING_BYTES // 1_000_000 + 1
    state.receive(opened(*range(1, calls + 2)))
    slow, fast = state.outbox(1), state.outbox(calls + 1)
    slow.text("x" * 1_010_000)
    for call_id in range(2, calls + 1):
        state.outbox(call_id).text("x" * 1_000_000)
    for _ in range(3):
        fast.text("x" * 10)
    with pytest.raises(InferenceError) as caught:
        slow.text("x")
    assert caught.value.reason == "slow_reader"


def test_whole_response_may_follow_an_admission_that_still_waits() -> None:
    state = session()
    calls = range(1, 31)
    state.receive(opened(*calls))
    for call_id in calls:
        state.outbox(call_id).part(GenerateResponse(admitted=Admitted(call_id="x")))
    for call_id in calls:
        text = "x" * (1_200_000 + 10_000 * call_id)
        state.outbox(call_id).part(GenerateResponse(deltas=[ChoiceDelta(text=text)]))
        state.end(call_id, OK)
    frames = [frame for message in everything(state) for frame in message.frames]
    assert [len(frame.response.deltas) for frame in frames] == [1] * 30


@pytest.mark.parametrize("cancelled", [False, True])
def test_output_that_is_dropped_does_not_count_for_the_session(cancelled: bool) -> None:
    state = session()
    ended = range(1, 24)
    small = range(101, 111)
    state.receive(opened(*ended, 100, *small))
    for call_id in small:
        state.outbox(call_id).text("x")
    for call_id in ended:
        outbox = state.outbox(call_id)
        for _ in range(8):
            outbox.text("x" * 100_000)
        if cancelled:
            state.end(call_id, LOST, discard=True)
            continue
        with pytest.raises(InferenceError):
            for _ in range(10):
                outbox.text("x" * 100_000)
        state.end(call_id, LOST)
    for _ in range(10):
        state.outbox(100).text("x" * 100_000)


def test_pulse_is_due_while_calls_are_open_and_nothing_else_is_sent() -> None:
    state = session()
    assert everything(state, 100.0) == []
    state.receive(opened(1))
    assert everything(state, 100.0 + PULSE_SECONDS - 0.1) == []
    assert everything(state, 100.0 + PULSE_SECONDS) == [SessionResponse()]
    state.outbox(1).text("x")
    assert len(everything(state, 100.0 + PULSE_SECONDS + 1)) == 1
    assert everything(state, 100.0 + 2 * PULSE_SECONDS) == []


def test_going_away_is_sent_once_and_without_credit() -> None:
    state = session()
    state.receive(opened(1))
    for _ in range(STEP_CREDIT + 1):
        state.outbox(1).text("x")
        everything(state)
    state.drain()
    assert everything(state) == [SessionResponse(going_away=True)]
    assert everything(state) == []


def test_cancelled_call_drops_its_output_and_still_ends() -> None:
    state = session()
    state.receive(opened(1))
    state.outbox(1).text("x")
    state.end(1, b"cancelled", discard=True)
    (message,) = everything(state)
    assert message.frames == [Frame(call_id=1, status=b"cancelled")]


# Both halves of a session, joined in memory


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_both_halves_carry_every_call_to_its_end(seed: int, at_once: bool) -> None:
    """A random schedule of opens, output, cancels and deliveries, with a clock that only rises."""
    dice = random.Random(seed)
    edge: EdgeSession[str] = EdgeSession(0.0)
    service = session()
    upwards: deque[SessionRequest] = deque()
    downwards: deque[SessionResponse] = deque()
    first = edge.hello()
    assert edge.greet(ServiceSession.hello(first, ["m"]), 0.0)
    expected: dict[str, str] = {}
    seen: dict[str, str] = {}
    ends: dict[str, Ended] = {}
    names: dict[int, str] = {}
    running: set[int] = set()
    cancelled: set[str] = set()

    def deliver() -> None:
        for _ in range(len(upwards) if at_once else min(1, len(upwards))):
            received = service.receive(upwards.popleft())
            running.update(o.call_id for o in received.opens)
            for call_id in set(received.cancels) & running:
                running.discard(call_id)
                service.end(call_id, LOST, discard=True)
        for _ in range(len(downwards) if at_once else min(1, len(downwards))):
            got = edge.receive(downwards.popleft(), 0.0)
            for name, text in got.texts:
                seen[name] += text
            for name, part, ended in got.parts:
                seen[name] += "".join(delta.text for delta in part.deltas) if part else ""
                if ended is not None:
                    assert name not in ends
                    ends[name] = ended

    def send() -> None:
        while (message := edge.next_message(0.0)) is not None:
            upwards.append(message)
        downwards.extend(everything(service))

    for turn in range(120):
        if turn < 60 and dice.random() < 0.3:
            name = f"call {turn}"
            names[edge.open(name, GenerateRequest(model="m"), CallOptions(9.0, {}, ""), 0.0)] = name
            expected[name] = seen[name] = ""
        for call_id in sorted(running):
            if dice.random() < 0.5:
                text = dice.choice(["a", "é", "😀"])
                expected[names[call_id]] += text
                if dice.random() < 0.3:
                    delta = ChoiceDelta(index=0, text=text)
                    service.outbox(call_id).part(GenerateResponse(deltas=[delta]))
                else:
                    service.outbox(call_id).text(text)
            elif dice.random() < 0.1 or turn > 60:
                running.discard(call_id)
                service.end(call_id, OK)
        if names and dice.random() < 0.1:
            call_id = dice.choice(list(names))
            if names[call_id] not in ends:
                cancelled.add(names[call_id])
                edge.cancel(call_id)
        send()
        deliver()
    while upwards or downwards or running:
        for call_id in sorted(running):
            running.discard(call_id)
            service.end(call_id, OK)
        send()
        deliver()
        send()
    assert ends.keys() == expected.keys() - cancelled
    assert {name: seen[name] for name in ends} == {name: expected[name] for name in ends}
    assert all(seen[name] == expected[name][: len(seen[name])] for name in cancelled)
    assert edge.lose(Status()) == []
    service.half_close()
    assert service.finished


def test_calls_go_on_until_all_have_ended() -> None:
    state = session()
    assert not state.goes_on
    state.receive(opened(1, 2))
    assert state.goes_on
    state.end(1, OK)
    assert state.goes_on
    state.end(2, OK)
    assert not state.goes_on
    assert everything(state)
    state.receive(opened(3))
    assert state.goes_on
    state.end(3, OK)
    assert not state.goes_on


def test_session_stalls_while_output_waits_for_credit() -> None:
    state = session()
    state.receive(opened(1))
    assert not state.stalled
    for _ in range(STEP_CREDIT):
        state.outbox(1).text("x")
        assert not state.stalled
        everything(state)
    assert not state.stalled  # nothing waits
    state.outbox(1).text("x")
    assert state.stalled
    state.receive(SessionRequest(acknowledged_step=1))
    assert not state.stalled


# The session's bytes in the memory budget


def test_pulse_and_goodbye_hold_nothing() -> None:
    memory = MemoryBudget(1 << 30)
    state = ServiceSession(lambda: None, 0.0, memory)
    state.receive(opened(1))
    state.drain()
    assert state.next_message(0.0) == SessionResponse(going_away=True)
    assert state.next_message(PULSE_SECONDS) == SessionResponse()
    assert state.next_message(PULSE_SECONDS) is None
    assert memory.used == 0


def test_large_output_is_counted_until_its_step_is_written() -> None:
    memory = MemoryBudget(1 << 30)
    state = ServiceSession(lambda: None, 0.0, memory)
    assert state.next_message(0.0) is None
    assert memory.used == 0
    state.receive(opened(1))
    state.outbox(1).text("x" * 2 * SMALL_BYTES)
    assert memory.used == 2 * SMALL_BYTES
    assert state.next_message(0.0) is not None
    assert memory.used == 2 * SMALL_BYTES + 8  # and the columns of the step
    assert state.next_message(0.0) is None  # it is written
    assert memory.used == 0
    state.outbox(1).text("x" * (SMALL_BYTES - 8))
    assert state.next_message(0.0) is not None
    assert memory.used == 0  # a small step
    assert state.next_message(0.0) is None
    assert memory.used == 0


def test_call_that_ended_holds_nothing_after_its_last_step() -> None:
    memory = MemoryBudget(1 << 30)
    state = ServiceSession(lambda: None, 0.0, memory)
    state.receive(opened(1))
    state.outbox(1).holding.take(1000)
    state.end(1, b"")
    assert memory.used == 1000
    assert state.next_message(0.0) is not None
    assert memory.used == 0


def test_closed_session_holds_nothing() -> None:
    memory = MemoryBudget(1 << 30)
    state = ServiceSession(lambda: None, 0.0, memory)
    state.receive(opened(1, 2))
    state.outbox(1).text("x" * 2 * SMALL_BYTES)
    state.next_message(0.0)
    state.outbox(2).holding.take(1000)
    assert memory.used > 2 * SMALL_BYTES + 1000
    state.close()
    assert memory.used == 0
