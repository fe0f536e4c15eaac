"""The edge's face: many generations over one stream, one message per engine step.

Everything that calls have to say in one turn of the event loop leaves as one message. While the
edge has not acknowledged `STEP_CREDIT` messages nothing is sent, and what the engine makes
meanwhile is merged per call; the engine itself never waits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc
from google.rpc import status_pb2

from inference.call_context import ServicerContext, abort, call_context
from inference.errors import InferenceError, to_rpc_status
from inference.generation import run
from inference.outbox import Outbox
from inference.registry import Registry
from isthmus.session.v1alpha1.session_pb2 import (
    Open,
    ServiceHello,
    SessionRequest,
    SessionResponse,
)
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceServicer
from isthmus.v1.generate_pb2 import GenerateResponse

log = logging.getLogger(__name__)

REVISION: Final = 1
STEP_CREDIT: Final = 8
PULSE_SECONDS: Final = 5.0
# An edge that takes nothing for this long is gone.
WRITE_SECONDS: Final = 30.0
# A message above this is split, so that small calls do not wait behind a large one.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
# What all calls of one session may have waiting before the session is ended.
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
MAX_METADATA_BYTES: Final = 2048

_OK: Final = status_pb2.Status(code=grpc.StatusCode.OK.value[0]).SerializeToString()
_CANCELLED: Final = status_pb2.Status(
    code=grpc.StatusCode.CANCELLED.value[0], message="The caller cancelled."
).SerializeToString()


class SessionService(SessionServiceServicer):
    """Accepts the session of each edge process."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Session(  # noqa: N802
        self,
        request_iterator: object,  # noqa: ARG002
        context: ServicerContext,
    ) -> None:
        """Runs one session to its end."""
        first = await context.read()
        if not isinstance(first, SessionRequest) or not first.HasField("hello"):
            await abort(context, InferenceError("invalid_request_error", "Expected a hello."))
        await _Session(self._registry, context).serve(first)


class _Call:
    """One generation of a session; a sink that marks itself as having something to say."""

    __slots__ = ("_session", "call_id", "outbox", "status", "task")

    def __init__(self, session: _Session, opened: Open) -> None:
        self._session = session
        self.call_id = opened.call_id
        self.outbox = Outbox()
        self.status: bytes | None = None
        self.task = asyncio.create_task(session.generate(self, opened))
        self.task.add_done_callback(self._end)

    def text(self, text: str) -> None:
        self.outbox.text(text)
        self._session.wake(self, len(text))

    def part(self, part: GenerateResponse) -> None:
        self._session.wake(self, self.outbox.part(part))

    def _end(self, task: asyncio.Task[InferenceError | None]) -> None:
        # A callback, not the task's last lines: a task that is cancelled before its first step
        # runs none of its lines, and the edge waits for this status.
        if task.cancelled():
            self.outbox.clear()
            self.status = _CANCELLED
        else:
            error = task.result()
            self.status = _OK if error is None else to_rpc_status(error).SerializeToString()
        self._session.wake(self, 0)


class _Session:
    def __init__(self, registry: Registry, context: ServicerContext) -> None:
        self._registry = registry
        self._context = context
        self._calls: dict[int, _Call] = {}
        self._last_call_id = 0
        self._speaking: dict[_Call, None] = {}  # an ordered set
        self._waiting_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._sleeping: asyncio.Future[None] | None = None  # what the writer waits for
        self._writing = False
        self._due = 0.0  # of the loop's clock: the end of a write, or the next pulse
        self._pulse = False  # it is due
        self._step = 0
        self._acknowledged = 0
        self._no_more_opens = False
        self._said_goodbye = False

    async def serve(self, first: SessionRequest) -> None:
        """Reads and writes until the edge has gone, or has said its last and heard its last."""
        hello = ServiceHello(
            revision=min(REVISION, first.hello.revision),
            models=[served.config.id for served in self._registry.models],
            step_credit=STEP_CREDIT,
            pulse_ms=int(PULSE_SECONDS * 1000),
        )
        await self._context.write(SessionResponse(hello=hello))
        self._due = self._loop.time() + PULSE_SECONDS
        bound = asyncio.timeout(None)
        helpers = [
            asyncio.create_task(self._watch(bound)),
            asyncio.create_task(self._wake_on_drain()),
            asyncio.create_task(self._read(first)),
        ]
        try:
            async with bound:
                await self._write_all()
        finally:
            tasks = [*helpers, *(call.task for call in self._calls.values())]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def wake(self, call: _Call, size: int) -> None:
        """Notes that a call has `size` more bytes to say.

        Raises:
            InferenceError: The edge is too far behind with the session as a whole.
        """
        self._speaking[call] = None
        self._waiting_bytes += size
        if self._sleeping is not None:
            self._wake_writer()
        if self._waiting_bytes > MAX_WAITING_BYTES and 0 < size < self._waiting_bytes:
            raise InferenceError("slow_reader", "The edge does not read its session fast enough.")

    async def generate(self, call: _Call, opened: Open) -> InferenceError | None:
        """Runs one call to its end."""
        metadata = dict(opened.metadata.items())
        if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
            metadata = {}
        context = call_context(
            metadata,
            opened.timeout_ms / 1000 or None,
            opened.request.request_id,
            opened.principal,
        )
        return await run(self._registry, opened.request, context, call)

    # --- reading -------------------------------------------------------------------------

    async def _read(self, first: SessionRequest) -> None:
        message: object = first
        try:
            while isinstance(message, SessionRequest):
                self._handle(message)
                message = await self._context.read()
        finally:
            self._no_more_opens = True
            self._wake_writer()

    def _handle(self, message: SessionRequest) -> None:
        for opened in message.opens:
            self._open(opened)
        for call_id in message.cancels:
            call = self._calls.get(call_id)
            if call is not None:
                call.task.cancel()
        if message.HasField("acknowledged_step"):
            self._acknowledged = max(self._acknowledged, message.acknowledged_step)
            if self._speaking:
                self._wake_writer()

    def _open(self, opened: Open) -> None:
        if opened.call_id <= self._last_call_id:
            log.warning("session: call id %d used again; ignored", opened.call_id)
            return
        self._last_call_id = opened.call_id
        self._calls[opened.call_id] = _Call(self, opened)

    # --- writing -------------------------------------------------------------------------

    async def _wake_on_drain(self) -> None:
        await self._registry.draining.wait()
        self._wake_writer()

    async def _watch(self, bound: asyncio.Timeout) -> None:
        """Has a pulse written when nothing else is; ends a write that the edge does not take.

        One sleeper for all messages: a timer for each would cost as much as a message.
        """
        while True:
            # No longer than a pulse may wait that is first thought of right after this.
            await asyncio.sleep(min(self._due - self._loop.time(), PULSE_SECONDS))
            now = self._loop.time()
            if now < self._due:
                continue
            if self._writing:
                bound.reschedule(now)
                return
            self._due = now + PULSE_SECONDS
            self._pulse = bool(self._calls)
            self._wake_writer()

    async def _write_all(self) -> None:
        while not self._finished():
            if self._speaking and self._has_credit():
                # Let every call of this engine step have its say first; and one just admitted its
                # first words, if they are there already.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await self._write_step()
            elif self._must_say_goodbye():
                await self._write_step()
            elif self._pulse:
                await self._write(SessionResponse())
            else:
                self._sleeping = self._loop.create_future()
                await self._sleeping

    async def _write_step(self) -> None:
        for message in self._collect():
            await self._write(message)

    async def _write(self, message: SessionResponse) -> None:
        self._pulse = False
        self._writing, self._due = True, self._loop.time() + WRITE_SECONDS
        await self._context.write(message)
        self._writing, self._due = False, self._loop.time() + PULSE_SECONDS

    def _wake_writer(self) -> None:
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None and not sleeping.done():
            sleeping.set_result(None)

    def _finished(self) -> bool:
        # After a goodbye, too, the edge closes its side first: what it sends to a stream that has
        # ended fails the whole call on its side, with messages in it that it has not read yet.
        return self._no_more_opens and not self._calls

    def _has_credit(self) -> bool:
        # An edge that has half-closed cannot acknowledge any more; it wants the rest all the same.
        return self._no_more_opens or self._step - self._acknowledged < STEP_CREDIT

    def _must_say_goodbye(self) -> bool:
        return self._registry.draining.is_set() and not self._said_goodbye

    def _collect(self) -> list[SessionResponse]:
        """Empties all outboxes into messages of at most about MAX_MESSAGE_BYTES."""
        speaking, self._speaking = self._speaking, {}
        self._waiting_bytes = 0
        batches: list[_Batch] = []
        for call in speaking:
            if not batches or batches[-1].size > MAX_MESSAGE_BYTES:
                self._step += 1
                batches.append(_Batch(self._step))
            batches[-1].add(call)
            if call.status is not None:
                self._calls.pop(call.call_id, None)
        messages = [batch.message() for batch in batches]
        if self._must_say_goodbye():
            self._said_goodbye = True
            messages.append(SessionResponse(going_away=True))
        return messages


class _Batch:
    """One message in the making."""

    def __init__(self, step: int) -> None:
        self.size = 0
        self._call_ids: list[int] = []
        self._texts: list[bytes] = []
        self._message = SessionResponse(step=step)

    def add(self, call: _Call) -> None:
        text = call.outbox.take_text() if call.status is None else None
        if text is not None:
            data = text.encode()
            self._call_ids.append(call.call_id)
            self._texts.append(data)
            self.size += len(data) + 8
            return
        frame = self._message.frames.add(call_id=call.call_id, status=call.status)
        if call.outbox:
            frame.response.CopyFrom(call.outbox.take())
        self.size += frame.ByteSize() + 1

    def message(self) -> SessionResponse:
        if self._call_ids:
            texts = self._message.texts
            texts.call_ids.extend(self._call_ids)
            texts.lengths.extend([len(data) for data in self._texts])
            texts.text = b"".join(self._texts)
        return self._message
