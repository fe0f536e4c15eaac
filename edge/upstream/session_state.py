"""The edge's half of a session, without I/O: messages in, outcomes and messages out.

One session is one bidirectional stream to one service; all generations of this edge process for
that service travel on it. docs/architecture.md describes both halves; the rules of this one are:

  Order       For each call: admitted, output, end. Text columns of a message come before its
              frames. Nothing follows an end.
  Ids         Call ids increase and are never reused. They are valid only within their stream.
  Opening     Opens are collected for the next message. Once it exceeds MAX_OPENS_BYTES, further
              opens wait for the next one, so that one large request does not delay all others.
  Credit      The service sends `step_credit` steps ahead of the acknowledgement. The edge
              acknowledges a step when its output has been handed to the receivers, at the latest
              after half the credit: an acknowledgement costs both sides a message.
  Cancelling  A call that has not been sent is removed at once. Otherwise a cancel is sent, and
              the entry is kept until the service ends the call; output before that is dropped.
  Draining    After `going_away` the service accepts no further opens; running calls continue. The
              edge opens a new session for new calls and half-closes this one after the last end.
  Silence     While calls are open the service sends a message at least every 5 s. After
              SILENCE_SECONDS without one, the edge ends the session.
  Deadlines   The service enforces them. The edge ends a call itself DEADLINE_SLACK_SECONDS later.
  Loss        Every open call ends with UNAVAILABLE. A call whose open was still queued was
              certainly not sent (replay.py).
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from google.rpc.status_pb2 import Status
from msgspec import Struct

from edge.upstream.transport import OK, SILENCE_SECONDS, CallOptions, Ended
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Open,
    SessionRequest,
    SessionResponse,
    TextColumns,
)
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.models_pb2 import Load

REVISION: Final = 1
# Seconds that the edge waits beyond a call's deadline for the service to end it.
DEADLINE_SLACK_SECONDS: Final = 1.0
# Bytes of opens after which no further open is added to a message.
MAX_OPENS_BYTES: Final = 1024 * 1024

CallT = TypeVar("CallT")


class _Entry(Struct, Generic[CallT], eq=False):
    """A call of this session.

    Attributes:
        call: None after a cancel: later output is dropped.
        request: None after it was sent.
        options: Of the call.
        deadline: Monotonic seconds.
        received: Whether any output has arrived.
    """

    # A struct would print its members, the prompt among them.
    __repr__ = object.__repr__

    call: CallT | None
    request: GenerateRequest | None
    options: CallOptions
    deadline: float
    received: bool = False

    def ended(self, status: Status, *, silent: bool = False) -> Ended:
        return Ended(status, self.request is None, self.received, silent)


class Received(Struct, Generic[CallT]):
    """The output in a message of the service, in the order in which it applies.

    Attributes:
        texts: Plain text of choice 0.
        parts: Other output, and ends; a call may have both in one entry.
    """

    texts: list[tuple[CallT, str]]
    parts: list[tuple[CallT, GenerateResponse | None, Ended | None]]


class EdgeSession(Generic[CallT]):
    """One session's state. `CallT` is the caller's object for a call, returned with its output.

    Attributes:
        going_away: Whether the service accepts no further opens.
        loads: What the engine of each model does, by the model's id, as last told.
    """

    def __init__(self, now: float) -> None:
        self.going_away = False
        self.loads: dict[str, Load] = {}
        self._entries: dict[int, _Entry[CallT]] = {}
        self._next_call_id = 1
        self._unsent: dict[int, _Entry[CallT]] = {}
        self._cancels: list[int] = []
        self._step = self._acknowledged = 0
        self._acknowledge_every = 1
        self._last_message = now

    def __repr__(self) -> str:
        return (
            f"<EdgeSession {len(self._entries)} calls, {len(self._unsent)} unsent, "
            f"step {self._step} acknowledged {self._acknowledged}>"
        )

    @staticmethod
    def hello() -> SessionRequest:
        """The first message."""
        return SessionRequest(hello=EdgeHello(revision=REVISION))

    def greet(self, message: SessionResponse, now: float) -> bool:
        """Reads the service's first message; False if it uses another revision."""
        self._last_message = now
        self._acknowledge_every = max(1, message.hello.step_credit // 2)
        return message.hello.revision == REVISION

    def open(self, call: CallT, request: GenerateRequest, options: CallOptions, now: float) -> int:
        """Queues a call and returns its id."""
        if not self._entries:
            self._last_message = now  # Idle time does not count as silence.
        call_id = self._next_call_id
        self._next_call_id += 1
        deadline = now + options.timeout_seconds + DEADLINE_SLACK_SECONDS
        entry = _Entry(call, request, options, deadline)
        self._entries[call_id] = self._unsent[call_id] = entry
        return call_id

    def cancel(self, call_id: int) -> None:
        """Cancels a call; its later output is dropped. Unknown and ended calls are ignored."""
        entry = self._entries.get(call_id)
        if entry is None or entry.call is None:
            return
        entry.call = None
        if self._unsent.pop(call_id, None) is not None:
            del self._entries[call_id]
        else:
            self._cancels.append(call_id)

    @property
    def wants_to_send(self) -> bool:
        """Whether `next_message` returns a message."""
        return (
            bool(self._unsent or self._cancels)
            or self._step - self._acknowledged >= self._acknowledge_every
        )

    @property
    def finished(self) -> bool:
        """Whether the edge should half-close: the service is draining and no call is open."""
        return self.going_away and not self._entries

    def next_message(self, now: float) -> SessionRequest | None:
        """All opens, cancels and acknowledgements to send, up to MAX_OPENS_BYTES; None for none.

        Each open carries the remaining time of its deadline.
        """
        if not self.wants_to_send:
            return None
        message = SessionRequest(acknowledged_step=self._step)
        self._acknowledged = self._step
        if self._cancels:
            message.cancels.extend(self._cancels)
            self._cancels = []
        size = 0
        while self._unsent and size < MAX_OPENS_BYTES:
            call_id = next(iter(self._unsent))
            entry = self._unsent.pop(call_id)
            if (request := entry.request) is not None:
                entry.request = None
                remaining = entry.deadline - DEADLINE_SLACK_SECONDS - now
                _fill_open(message.opens.add(), call_id, request, entry.options, remaining)
                if self._unsent:  # A message is measured by serializing it.
                    size += request.ByteSize()
        return message

    def receive(self, message: SessionResponse, now: float) -> Received[CallT]:
        """Reads a message of the service; skips output of cancelled calls."""
        self._last_message = now
        received: Received[CallT] = Received([], [])
        if message.HasField("texts"):
            self._read_texts(message.texts, received.texts)
        for frame in message.frames[:]:
            entry = self._entries.get(frame.call_id)
            if entry is None:
                continue
            part = frame.response if frame.HasField("response") else None
            entry.received = entry.received or part is not None
            ended = None
            if frame.HasField("status"):
                status = frame.status
                del self._entries[frame.call_id]
                ended = entry.ended(Status.FromString(status) if status else OK)
            if entry.call is not None:
                received.parts.append((entry.call, part, ended))
        if message.HasField("step"):
            self._step = message.step
        if message.loads:
            self.loads = {told.model: told.load for told in message.loads}
        self.going_away = self.going_away or message.going_away
        return received

    def silent(self, now: float) -> bool:
        """Whether calls are open and nothing arrived for SILENCE_SECONDS."""
        return bool(self._entries) and now - self._last_message > SILENCE_SECONDS

    def expire(self, now: float, status: Status) -> list[tuple[CallT, Ended]]:
        """Cancels and returns the calls whose deadline the service missed."""
        expired = []
        for call_id, entry in list(self._entries.items()):
            if entry.call is not None and entry.deadline < now:
                expired.append((entry.call, entry.ended(status)))
                self.cancel(call_id)
        return expired

    def lose(self, status: Status, *, silent: bool = False) -> list[tuple[CallT, Ended]]:
        """Ends every call with a status, after the stream has ended."""
        entries, self._entries, self._unsent = self._entries, {}, {}
        return [
            (entry.call, entry.ended(status, silent=silent))
            for entry in entries.values()
            if entry.call is not None
        ]

    def _read_texts(self, columns: TextColumns, texts: list[tuple[CallT, str]]) -> None:
        entries, blob, start = self._entries, columns.text, 0
        for call_id, length in zip(columns.call_ids[:], columns.lengths[:], strict=True):
            end = start + length
            entry = entries.get(call_id)
            if entry is not None and entry.call is not None:
                entry.received = True
                texts.append((entry.call, blob[start:end].decode()))
            start = end


def _fill_open(
    out: Open, call_id: int, request: GenerateRequest, options: CallOptions, timeout_seconds: float
) -> None:
    """Fills an open in place, because adding a finished Open to a message copies it."""
    out.call_id = call_id
    out.request.CopyFrom(request)
    out.timeout_ms = max(1, int(timeout_seconds * 1000))
    out.principal = options.principal
    metadata = out.metadata
    for name, value in options.metadata.items():
        metadata[name] = value
