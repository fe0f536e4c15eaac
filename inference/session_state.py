"""The service's half of a session, without I/O: requests and output in, messages out.

One session is one bidirectional stream from one edge process; all its generations travel on it.
docs/architecture.md describes both halves; the rules of this one are:

  Order       For each call: admitted, output, end. Nothing follows an end.
  Steps       All output that is ready at one moment is sent as one step. A call with only text
              of choice 0 is an entry in the text columns, any other call is a frame. A step
              beyond MAX_STEP_BYTES is split between calls, so that small ones are not delayed.
  Credit      At most STEP_CREDIT steps are unacknowledged. Without credit nothing is sent, and
              the output of each call is merged meanwhile (outbox.py). The engine never waits.
  Bounds      A call may have 1 MiB of unsent output (outbox.py), a session MAX_WAITING_BYTES.
              Beyond the latter, calls that hold more than their share end with `slow_reader`.
  Ids         Increase. An open with an id that is not higher than all earlier ids is ignored.
  Cancelling  A cancel for an unknown or ended call is ignored. A cancelled call still gets an end.
  Pulse       While calls are open and nothing else was sent for PULSE_SECONDS, an empty message
              shows the edge that the service is alive.
  Loads       What the engines do travels with the next message, or in one of its own.
  Draining    `going_away` is sent once, without credit. Running calls continue.
  The end     The stream ends when the edge has half-closed and no call is open. The edge closes
              its side first: if the service ended the stream first, the edge would lose messages
              that it has not read yet. A half-closed edge acknowledges nothing, so credit is
              ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec import Struct

from contract.memory import SMALL_BYTES, Holding, MemoryBudget
from inference.errors import InferenceError
from inference.outbox import Outbox
from isthmus.session.v1alpha1.session_pb2 import (
    ModelLoad,
    Open,
    ServiceHello,
    SessionRequest,
    SessionResponse,
)

REVISION: Final = 1
# Steps that may be sent ahead of the edge's acknowledgement.
STEP_CREDIT: Final = 8
# Seconds without a message after which an empty one is sent while calls are open.
PULSE_SECONDS: Final = 5.0
# Bytes after which no further call is added to a step.
MAX_STEP_BYTES: Final = 1024 * 1024
# Bytes of unsent output of all calls of a session.
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024


class Received(Struct, frozen=True):
    """The contents of a message of the edge.

    Attributes:
        opens: Calls to start.
        cancels: Ids of running calls to cancel.
        repeated: Ids of opens that are ignored, because the id was used before.
    """

    opens: list[Open]
    cancels: list[int]
    repeated: list[int]


class _Entry:
    """A call of this session."""

    __slots__ = ("call_id", "outbox", "status")

    def __init__(self, call_id: int, holding: Holding) -> None:
        self.call_id = call_id
        self.outbox = Outbox(holding)
        # A serialized google.rpc.Status after the call has ended.
        self.status: bytes | None = None


class ServiceSession:
    """One session's state.

    Args:
        wake: Called when `next_message` may return a message.
        now: Seconds of a monotonic clock.
        memory: Bounds what all calls of the process hold.
    """

    def __init__(self, wake: Callable[[], None], now: float, memory: MemoryBudget) -> None:
        self._wake = wake
        self._memory = memory
        # Steps that are not written yet, and the size of the one that is being written.
        self._sending = Holding(memory)
        self._in_write = 0
        self._entries: dict[int, _Entry] = {}
        # Entries that have ended and wait to be sent.
        self._ended = 0
        self._last_call_id = 0
        # Calls with unsent output or a status, in the order of their first addition.
        self._filled: dict[_Entry, None] = {}
        self._waiting_bytes = 0
        # Messages, and what they hold of the memory budget.
        self._ready: deque[tuple[SessionResponse, int]] = deque()
        self._step = self._acknowledged = 0
        self._loads: list[ModelLoad] = []
        self._half_closed = self._draining = self._goodbye_sent = False
        self._last_sent = now

    def __repr__(self) -> str:
        return (
            f"<ServiceSession {len(self._entries)} calls, {self._waiting_bytes} bytes waiting, "
            f"step {self._step} acknowledged {self._acknowledged}>"
        )

    @staticmethod
    def hello(first: SessionRequest, models: list[str]) -> SessionResponse:
        """The response to the edge's first message.

        Args:
            first: The message with the edge's hello.
            models: Ids of the models served.
        """
        return SessionResponse(
            hello=ServiceHello(
                revision=min(REVISION, first.hello.revision),
                models=models,
                step_credit=STEP_CREDIT,
                pulse_ms=int(PULSE_SECONDS * 1000),
            )
        )

    def receive(self, message: SessionRequest) -> Received:
        """Reads a message of the edge."""
        received = Received([], [], [])
        for opened in message.opens[:]:
            if opened.call_id > self._last_call_id:
                self._last_call_id = opened.call_id
                self._entries[opened.call_id] = _Entry(opened.call_id, Holding(self._memory))
                received.opens.append(opened)
            else:
                received.repeated.append(opened.call_id)
        received.cancels.extend(i for i in message.cancels[:] if i in self._entries)
        if message.HasField("acknowledged_step"):
            self._acknowledged = max(self._acknowledged, message.acknowledged_step)
            if self._filled:
                self._wake()
        return received

    def half_close(self) -> None:
        """Records that the edge sends no further message."""
        self._half_closed = True
        self._wake()

    def drain(self) -> None:
        """Records that the service accepts no further opens."""
        self._draining = True
        self._wake()

    def outbox(self, call_id: int) -> Outbox:
        """The outbox of an open call.

        Adding to it raises InferenceError (slow_reader) beyond the bounds above.
        """
        entry = self._entries[call_id]
        entry.outbox.on_filled = partial(self._fill, entry)
        return entry.outbox

    def end(self, call_id: int, status: bytes, *, discard: bool = False) -> None:
        """Records the end of a call.

        Args:
            call_id: An open call.
            status: A serialized google.rpc.Status.
            discard: Whether unsent output is dropped.
        """
        entry = self._entries[call_id]
        if discard:
            self._waiting_bytes -= entry.outbox.waiting_bytes
            entry.outbox.clear()
        entry.status = status
        self._ended += 1
        self._fill(entry, 0)

    @property
    def has_step(self) -> bool:
        """Whether calls have unsent output or a status, and credit allows a step."""
        return bool(self._filled) and (
            self._half_closed or self._step - self._acknowledged < STEP_CREDIT
        )

    @property
    def goes_on(self) -> bool:
        """Whether any open call may still add output."""
        return self._ended < len(self._entries)

    @property
    def stalled(self) -> bool:
        """Whether a step waits for the edge to acknowledge earlier ones."""
        return bool(self._filled) and not self.has_step

    def tell_loads(self, loads: list[ModelLoad]) -> None:
        """Adds what the engines do now to the next message; it replaces what was not sent."""
        self._loads = loads
        self._wake()

    @property
    def finished(self) -> bool:
        """Whether the stream should end."""
        return self._half_closed and not self._entries and not self._ready

    @property
    def pulse_at(self) -> float:
        """Time at which an empty message is due if calls are open and nothing is sent before."""
        return self._last_sent + PULSE_SECONDS

    def next_message(self, now: float) -> SessionResponse | None:
        """The next message to send; None if there is none, or no credit for it.

        The message before has been written.
        """
        if self._in_write:
            self._sending.count(-self._in_write)
            self._in_write = 0
        if not self._ready and self.has_step:
            self._collect()
        if self._draining and not self._goodbye_sent:
            self._goodbye_sent = True
            self._ready.append((SessionResponse(going_away=True), 0))
        if not self._entries:
            self._last_sent = now  # An idle session sends no pulse.
        is_due = bool(self._loads) or (bool(self._entries) and now >= self.pulse_at)
        if not self._ready and is_due:
            self._ready.append((SessionResponse(), 0))
        if not self._ready:
            return None
        self._last_sent = now
        message, self._in_write = self._ready.popleft()
        if self._loads:
            message.loads.extend(self._loads)
            self._loads = []
        return message

    def close(self) -> None:
        """Returns to the memory budget what the session and its calls hold."""
        self._sending.close()
        for entry in self._entries.values():
            entry.outbox.holding.close()

    def _fill(self, entry: _Entry, size: int) -> None:
        self._filled[entry] = None
        self._waiting_bytes += size
        self._wake()
        # Of the calls that go on, those that held more than their share before this addition end. A
        # call with only its admission waiting sends its whole response in one message.
        if size > 0 and self._waiting_bytes > MAX_WAITING_BYTES:
            held = entry.outbox.waiting_bytes - size
            if held * len(self._filled) > self._waiting_bytes:
                raise InferenceError(
                    "slow_reader", "The edge does not read its session fast enough."
                )

    def _collect(self) -> None:
        """Empties all outboxes into steps of at most about MAX_STEP_BYTES."""
        filled, self._filled = self._filled, {}
        self._waiting_bytes = self._ended = 0
        step: _Step | None = None
        for entry in filled:
            if step is None or step.size > MAX_STEP_BYTES:
                if step is not None:
                    self._append(step)
                self._step += 1
                step = _Step(self._step)
            step.add(entry)
            if entry.status is not None:
                self._entries.pop(entry.call_id, None)
                entry.outbox.holding.close()
            else:
                entry.outbox.sent()
        if step is not None:
            self._append(step)

    def _append(self, step: _Step) -> None:
        held = step.size if step.size > SMALL_BYTES else 0
        if held:
            self._sending.count(held)
        self._ready.append((step.message(), held))


class _Step:
    """Builds the message of one step."""

    def __init__(self, number: int) -> None:
        self.size = 0
        self._call_ids: list[int] = []
        self._texts: list[bytes] = []
        self._message = SessionResponse(step=number)

    def add(self, entry: _Entry) -> None:
        text = entry.outbox.take_text() if entry.status is None else None
        if text is not None:
            data = text.encode()
            self._call_ids.append(entry.call_id)
            self._texts.append(data)
            self.size += len(data) + 8
            return
        frame = self._message.frames.add(call_id=entry.call_id, status=entry.status)
        if entry.outbox:
            frame.response.CopyFrom(entry.outbox.take())
        self.size += frame.ByteSize() + 1

    def message(self) -> SessionResponse:
        if self._call_ids:
            texts = self._message.texts
            texts.call_ids.extend(self._call_ids)
            texts.lengths.extend([len(data) for data in self._texts])
            texts.text = b"".join(self._texts)
        return self._message
