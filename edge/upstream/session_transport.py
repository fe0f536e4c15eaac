"""The `session` transport: the tasks and the stream around a session's state.

One task reads messages and passes their output to the receivers, one writes collected messages, one
checks timeouts. No task exists for a generation or a token. session_state.py has the rules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import grpc
from google.rpc import status_pb2
from msgspec import Struct

from edge.upstream.session_state import EdgeSession
from edge.upstream.transport import (
    SILENCE_SECONDS,
    Call,
    CallOptions,
    Ended,
    OnEnded,
    Output,
    end_of,
    status_of,
    transport_status,
)
from isthmus.session.v1alpha1.session_pb2 import SessionRequest, SessionResponse
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceStub
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import Load

log = logging.getLogger(__name__)

# Seconds within which a service must send its hello.
HELLO_SECONDS: Final = 5.0
# Seconds between two checks of silence and deadlines.
CHECK_SECONDS: Final = 1.0
# Quoted, because grpc's classes are not generic at run time.
Stream: TypeAlias = "grpc.aio.StreamStreamCall[SessionRequest, SessionResponse]"


class SessionTransport:
    """Opens a session when a call needs one, also after a session was lost.

    Args:
        stub: Stub of the service's channel.
        credentials: Metadata that authorises the edge (scope `edge`).
        on_unsupported: Called if the service has no session RPC, or another revision of it.
        on_going_away: Called when the service accepts no further opens.
    """

    def __init__(
        self,
        stub: SessionServiceStub,
        credentials: tuple[tuple[str, str], ...],
        on_unsupported: Callable[[], None],
        on_going_away: Callable[[], None],
    ) -> None:
        self.stub = stub
        self.credentials = credentials
        self.on_unsupported = on_unsupported
        self.on_going_away = on_going_away
        self._session: _Session | None = None

    def open(
        self, request: GenerateRequest, output: Output, on_ended: OnEnded, options: CallOptions
    ) -> Call:
        """Adds the call to the next message."""
        return self._current().open(request, output, on_ended, options)

    @property
    def failure(self) -> status_pb2.Status | None:
        """Why the last session ended; None while it goes on."""
        return self._session.failure if self._session is not None else None

    @property
    def loads(self) -> Mapping[str, Load]:
        """The newest load of each model's engine, by model id."""
        return self._session.state.loads if self._session is not None else {}

    async def ready(self) -> bool:
        """Waits until a session is established or has failed, and returns whether it is."""
        session = self._current()
        await session.greeted.wait()
        return not session.closed

    async def close(self) -> None:
        """Ends the session and every call on it."""
        if self._session is not None:
            await self._session.close()

    def _current(self) -> _Session:
        session = self._session
        if session is None or session.closed or session.state.going_away:
            session = self._session = _Session(self)
        return session


class _SessionCall(Struct, eq=False):
    """A call; its `output` is None after the end or a cancel."""

    # A struct would print its members, the prompt among them.
    __repr__ = object.__repr__

    session: _Session
    output: Output | None
    on_ended: OnEnded
    call_id: int = 0

    def cancel(self) -> None:
        """See Call."""
        if self.output is not None:
            self.output = None
            self.session.cancel(self.call_id)

    def end(self, ended: Ended) -> None:
        """Ends the receiver; its exception must not keep other calls from ending."""
        if self.output is not None:
            self.output = None
            try:
                self.on_ended(ended)
            except Exception:
                log.exception("a receiver failed at the end of its call")


class _Session:
    """The stream of one session and its tasks."""

    def __init__(self, transport: SessionTransport) -> None:
        self.state: EdgeSession[_SessionCall] = EdgeSession(time.monotonic())
        self.closed = False
        self.greeted = asyncio.Event()
        self.failure: status_pb2.Status | None = None
        self._transport = transport
        self._wake_writer = asyncio.Event()
        self._silent = False
        # Monotonic seconds; None while no message is being written.
        self._writing_since: float | None = None
        self._main = asyncio.create_task(self._run())

    def open(
        self, request: GenerateRequest, output: Output, on_ended: OnEnded, options: CallOptions
    ) -> Call:
        call = _SessionCall(self, output, on_ended)
        call.call_id = self.state.open(call, request, options, time.monotonic())
        self._wake_writer.set()
        return call

    def cancel(self, call_id: int) -> None:
        self.state.cancel(call_id)
        self._wake_writer.set()

    async def close(self) -> None:
        self._main.cancel()
        await asyncio.wait([self._main])

    async def _run(self) -> None:
        status = transport_status(grpc.StatusCode.UNAVAILABLE, "The session ended.")
        stream: Stream = self._transport.stub.Session(metadata=self._transport.credentials)
        # Starts before the hello, because the deadlines of calls that wait for it count as well.
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._watch(stream))]
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await stream.write(self.state.hello())
                hello = await stream.read()
            if isinstance(hello, SessionResponse):
                if not self.state.greet(hello, time.monotonic()):
                    self._transport.on_unsupported()
                    return
                self.greeted.set()
                tasks.append(asyncio.create_task(self._write(stream)))
                for task in tasks:
                    task.add_done_callback(partial(_end_with, stream))
                await self._read(stream)
            if await stream.code() is not grpc.StatusCode.OK:
                status = await end_of(stream)
        except grpc.aio.AioRpcError as error:
            status = status_of(error)
        except asyncio.InvalidStateError:
            # The service ended the stream before the first write.
            status = await end_of(stream)
        except TimeoutError:
            status = transport_status(grpc.StatusCode.UNAVAILABLE, "No hello came.")
        except Exception:
            log.exception("a session failed")
        finally:
            self.closed = True
            self.failure = status
            for task in tasks:
                task.cancel()
            stream.cancel()
            if status.code == grpc.StatusCode.UNIMPLEMENTED.value[0]:
                self._transport.on_unsupported()
            self.greeted.set()
            self._end_all(status)

    def _end_all(self, status: status_pb2.Status) -> None:
        if self._silent:
            status = transport_status(grpc.StatusCode.UNAVAILABLE, "The service was silent.")
        for call, ended in self.state.lose(status, silent=self._silent):
            call.end(ended)

    async def _write(self, stream: Stream) -> None:
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer.clear()
                while (message := self.state.next_message(now := time.monotonic())) is not None:
                    self._writing_since = now
                    await stream.write(message)
                    self._writing_since = None
                if self.state.finished:
                    await stream.done_writing()
                    return
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            pass  # The reader gets the stream's status.

    async def _watch(self, stream: Stream) -> None:
        """Ends calls whose deadline the service missed, and a session that is silent or not read.

        A service that writes and does not read would hold all calls until their deadlines.
        """
        late = transport_status(grpc.StatusCode.DEADLINE_EXCEEDED, "No answer came.")
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            since = self._writing_since
            unread = since is not None and now - since > SILENCE_SECONDS
            if unread or self.state.silent(now):
                log.warning("the session made no progress for %.0f s; ending it", SILENCE_SECONDS)
                self._silent = True
                stream.cancel()
                return
            for call, ended in self.state.expire(now, late):
                call.end(ended)
                self._wake_writer.set()

    async def _read(self, stream: Stream) -> None:
        state = self.state
        while isinstance(message := await stream.read(), SessionResponse):
            received = state.receive(message, time.monotonic())
            for call, text in received.texts:
                if (output := call.output) is not None:
                    try:
                        output.on_text(text)
                    except Exception:
                        self._drop(call)
            for call, part, ended in received.parts:
                if part is not None and (output := call.output) is not None:
                    try:
                        output.on_part(part)
                    except Exception:
                        self._drop(call)
                if ended is not None:
                    call.end(ended)
            if state.wants_to_send or state.finished:
                self._wake_writer.set()
            if message.going_away:
                self._transport.on_going_away()

    def _drop(self, call: _SessionCall) -> None:
        """Ends the call whose receiver raised; the session and all other calls go on."""
        log.exception("a receiver failed; its call is cancelled")
        if call.output is not None:
            self.cancel(call.call_id)
            call.end(Ended(transport_status(grpc.StatusCode.INTERNAL, "A receiver failed.")))


def _end_with(stream: Stream, task: asyncio.Task[None]) -> None:
    """Ends the stream of a session whose writer or watcher has failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a session's task failed; ending the session", exc_info=error)
        stream.cancel()
