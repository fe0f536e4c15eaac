"""The `session` transport: every generation of this process over one stream to a service.

One task reads and hands out, one writes what has gathered. No task per generation or token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc
from google.rpc import status_pb2

from edge.upstream.transport import (
    SILENCE_SECONDS,
    Call,
    CallOptions,
    Receiver,
    Transport,
    end_of,
    status_of,
    transport_status,
    turned_away,
)
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Frame,
    Open,
    SessionRequest,
    SessionResponse,
    TextColumns,
)
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceStub
from isthmus.v1.generate_pb2 import GenerateRequest

log = logging.getLogger(__name__)

REVISION: Final = 1
HELLO_SECONDS: Final = 5.0
# The service ends a call at its deadline; the edge does so when nothing came by then.
DEADLINE_SLACK_SECONDS: Final = 1.0
# Opens above this travel in several messages: one beyond the transport's limit ends the session.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
# Quoted: at run time grpc's classes take no parameters.
Stream: TypeAlias = "grpc.aio.StreamStreamCall[SessionRequest, SessionResponse]"


class SessionTransport(Transport):
    """Connects on demand, and again when a lost session is needed again.

    Args:
        stub: Of the service's channel.
        credentials: Metadata that authorises the edge (scope `edge`).
        on_unsupported: Called when the service speaks no session or another revision.
        on_going_away: Called when the service takes no further opens.
    """

    def __init__(
        self,
        stub: SessionServiceStub,
        credentials: tuple[tuple[str, str], ...],
        on_unsupported: Callable[[], None],
        on_going_away: Callable[[], None],
    ) -> None:
        self._stub = stub
        self._credentials = credentials
        self._on_unsupported = on_unsupported
        self._on_going_away = on_going_away
        self._session: _Session | None = None

    def open(self, request: GenerateRequest, receiver: Receiver, options: CallOptions) -> Call:
        """Adds the call to the next batch."""
        return self._current().open(request, receiver, options)

    async def ready(self) -> None:
        """Returns once a session stands, or cannot."""
        await self._current().greeted.wait()

    def _current(self) -> _Session:
        if self._session is None or self._session.closed:
            self._session = _Session(self)
        return self._session

    async def close(self) -> None:
        """Ends the session and every call on it."""
        if self._session is not None:
            await self._session.close()

    def connect(self) -> Stream:
        """Starts the stream."""
        stream: Stream = self._stub.Session(metadata=self._credentials)
        return stream

    def unsupported(self) -> None:
        """Tells the owner to use another transport."""
        self._on_unsupported()

    def going_away(self) -> None:
        """Forgets the session: running calls end on it, new ones begin another."""
        self._session = None
        self._on_going_away()


class _SessionCall(Call):
    __slots__ = ("_session", "call_id", "deadline", "receiver")

    def __init__(
        self, session: _Session, call_id: int, receiver: Receiver, deadline: float
    ) -> None:
        self._session = session
        self.call_id = call_id
        self.receiver: Receiver | None = receiver
        self.deadline = deadline

    def cancel(self) -> None:
        if self.receiver is not None:
            self.receiver = None
            self._session.cancel(self.call_id)


class _Session:
    """One stream's life."""

    def __init__(self, transport: SessionTransport) -> None:
        self._transport = transport
        self._calls: dict[int, _SessionCall] = {}
        self._next_call_id = 1
        self._unsent: dict[int, tuple[GenerateRequest, CallOptions]] = {}
        self._cancels: list[int] = []
        self._step = self._acknowledged = 0
        self._acknowledge_every = 1
        self._something = asyncio.Event()
        self._heard = time.monotonic()
        self.closed = self._going_away = False
        self.greeted = asyncio.Event()
        self._main = asyncio.create_task(self._run())

    def open(self, request: GenerateRequest, receiver: Receiver, options: CallOptions) -> Call:
        call_id = self._next_call_id
        self._next_call_id += 1
        now = time.monotonic()
        if not self._calls:
            self._heard = now
        deadline = now + options.timeout_seconds + DEADLINE_SLACK_SECONDS
        call = self._calls[call_id] = _SessionCall(self, call_id, receiver, deadline)
        self._unsent[call_id] = request, options
        self._something.set()
        return call

    def cancel(self, call_id: int) -> None:
        if self._unsent.pop(call_id, None) is not None:
            self._calls.pop(call_id, None)
            return
        self._cancels.append(call_id)
        self._something.set()

    async def close(self) -> None:
        self._main.cancel()
        await asyncio.wait([self._main])

    async def _run(self) -> None:
        status = turned_away("The session ended before it took the call.")
        stream = self._transport.connect()
        tasks: list[asyncio.Task[Any]] = []
        try:
            await stream.write(SessionRequest(hello=EdgeHello(revision=REVISION)))
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await stream.read()
            if isinstance(hello, SessionResponse) and hello.hello.revision != REVISION:
                self._transport.unsupported()
                return
            if isinstance(hello, SessionResponse):
                # Each costs both sides a message: half of what the service lets go by is enough.
                self._acknowledge_every = max(1, hello.hello.step_credit // 2)
                self.greeted.set()
                tasks = [
                    asyncio.create_task(self._write(stream)),
                    asyncio.create_task(self._watch(stream)),
                ]
                await self._read(stream)
            if await stream.code() is not grpc.StatusCode.OK:
                status = await end_of(stream)
        except grpc.aio.AioRpcError as error:
            status = status_of(error)
        except asyncio.InvalidStateError:
            # The service had ended the stream before the first write.
            status = await end_of(stream)
        except TimeoutError:
            status = transport_status(grpc.StatusCode.UNAVAILABLE, "No hello came.")
        finally:
            self.closed = True
            for task in tasks:
                task.cancel()
            stream.cancel()
            if status.code == grpc.StatusCode.UNIMPLEMENTED.value[0]:
                self._transport.unsupported()
                status = transport_status(grpc.StatusCode.UNAVAILABLE, "No session here.")
            self.greeted.set()
            self._fail_all(status)

    def _fail_all(self, status: status_pb2.Status) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.receiver is not None:
                call.receiver.on_end(status)

    async def _write(self, stream: Stream) -> None:
        try:
            while True:
                await self._something.wait()
                self._something.clear()
                await stream.write(self._next_message())
                if self._going_away and not self._calls:
                    await stream.done_writing()
                    return
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            pass  # the reader learns why the stream ended

    def _next_message(self) -> SessionRequest:
        """What has gathered; opens beyond a size wait for the next message."""
        message = SessionRequest(cancels=self._cancels, acknowledged_step=self._step)
        self._acknowledged = self._step
        self._cancels = []
        size = 0
        while self._unsent and size < MAX_MESSAGE_BYTES:
            call_id = next(iter(self._unsent))
            request, options = self._unsent.pop(call_id)
            _fill_open(message.opens.add(), call_id, request, options)
            # Messages measure themselves by being serialised: not where nothing else waits.
            size += request.ByteSize() if self._unsent else 0
        if self._unsent:
            self._something.set()
        return message

    async def _watch(self, stream: Stream) -> None:
        """Ends a wedged session, and calls whose deadline the service missed."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            if self._calls and now - self._heard > SILENCE_SECONDS:
                log.warning("the session was silent for %.0f s; ending it", SILENCE_SECONDS)
                stream.cancel()
                return
            for call in [call for call in self._calls.values() if call.deadline < now]:
                receiver, call.receiver = call.receiver, None
                if receiver is not None:
                    self.cancel(call.call_id)
                    receiver.on_end(
                        transport_status(grpc.StatusCode.DEADLINE_EXCEEDED, "No answer came.")
                    )

    async def _read(self, stream: Stream) -> None:
        while isinstance(message := await stream.read(), SessionResponse):
            self._heard = time.monotonic()
            if message.HasField("texts"):
                self._hand_out(message.texts)
            for frame in message.frames:
                self._hand_frame(frame)
            if message.HasField("step"):
                self._step = message.step
                if self._step - self._acknowledged >= self._acknowledge_every:
                    self._something.set()
            if message.going_away:
                self._going_away = True
                self._something.set()
                self._transport.going_away()

    def _hand_out(self, texts: TextColumns) -> None:
        blob, start = texts.text, 0
        for call_id, length in zip(texts.call_ids, texts.lengths, strict=True):
            end = start + length
            call = self._calls.get(call_id)
            if call is not None and call.receiver is not None:
                try:
                    call.receiver.on_text(blob[start:end].decode())
                except Exception:
                    self._drop(call)
            start = end

    def _hand_frame(self, frame: Frame) -> None:
        call_id = frame.call_id
        call = self._calls.get(call_id)
        if call is None:
            return
        receiver = call.receiver
        ended = frame.HasField("status")
        if ended:
            del self._calls[call_id]
        if receiver is None:
            return
        try:
            if frame.HasField("response"):
                receiver.on_part(frame.response)
            if ended and call.receiver is not None:
                receiver.on_end(status_pb2.Status.FromString(frame.status))
        except Exception:
            self._drop(call)

    def _drop(self, call: _SessionCall) -> None:
        """A receiver failed: its call ends, the session and all others go on."""
        log.exception("a receiver failed; its call is cancelled")
        receiver = call.receiver
        call.cancel()
        if receiver is not None:
            receiver.on_end(transport_status(grpc.StatusCode.INTERNAL, "A receiver failed."))


def _fill_open(out: Open, call_id: int, request: GenerateRequest, options: CallOptions) -> None:
    """Fills it in its place: made elsewhere, it would be copied twice."""
    out.call_id = call_id
    out.request.CopyFrom(request)
    out.timeout_ms = max(1, int(options.timeout_seconds * 1000))
    out.principal = options.principal
    metadata = out.metadata
    for name, value in options.metadata.items():
        metadata[name] = value
