"""The session RPC: the tasks and the stream around a session's state (session_state.py).

One task reads, one writes, one checks timeouts; each generation has its own task. The engine adds
output to the call's outbox without waiting, and the writer takes all of it at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

import grpc
from google.rpc import status_pb2

from inference.errors import InferenceError, to_rpc_status
from inference.registry import Registry
from inference.rpc import ServicerContext, abort, call_context
from inference.serve import run
from inference.session_state import PULSE_SECONDS, ServiceSession
from isthmus.session.v1alpha1.session_pb2 import Open, SessionRequest, SessionResponse
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceServicer

log = logging.getLogger(__name__)

# Seconds that writing a message may take; then the session ends.
WRITE_SECONDS: Final = 30.0
# Seconds that an edge has for its hello.
HELLO_SECONDS: Final = 10.0
# Seconds between two looks at what the engines do; the edge is told of changes.
LOAD_SECONDS: Final = 0.2
# Bytes of an open's metadata; larger metadata is ignored completely.
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
        first = None
        with suppress(TimeoutError):
            async with asyncio.timeout(HELLO_SECONDS):
                first = await context.read()
        if not isinstance(first, SessionRequest) or not first.HasField("hello"):
            await abort(context, InferenceError("invalid_request_error", "Expected a hello."))
        metrics = self._registry.metrics
        metrics.sessions += 1
        try:
            await _Session(self._registry, context).serve(first)
        finally:
            metrics.sessions -= 1


class _Session:
    """The stream of one session and its tasks."""

    def __init__(self, registry: Registry, context: ServicerContext) -> None:
        self._registry = registry
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._state = ServiceSession(self._wake_writer, self._loop.time(), registry.memory)
        self._metrics = registry.metrics
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Loop time of the cancel of each cancelled call.
        self._cancelled: dict[int, float] = {}
        # The writer awaits this while it has nothing to send.
        self._sleeping: asyncio.Future[None] | None = None
        # Loop time at which the write in progress has failed.
        self._write_until: float | None = None

    async def serve(self, first: SessionRequest) -> None:
        """Reads and writes until the edge leaves, or has half-closed and has received all ends."""
        models = [served.config.id for served in self._registry.models]
        await self._context.write(self._state.hello(first, models))
        bound = asyncio.timeout(None)
        helpers = [
            asyncio.create_task(self._watch(bound)),
            asyncio.create_task(self._drain()),
            asyncio.create_task(self._tell_loads()),
            asyncio.create_task(self._read(first)),
        ]
        try:
            async with bound:
                await self._write_all()
        finally:
            tasks = [*helpers, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
            finally:  # gRPC may cancel this wait, too.
                self._state.close()

    async def _read(self, first: SessionRequest) -> None:
        message: object = first
        try:
            while isinstance(message, SessionRequest):
                received = self._state.receive(message)
                for opened in received.opens:
                    self._open(opened)
                for call_id in received.cancels:
                    if (task := self._tasks.get(call_id)) is not None:
                        self._cancelled.setdefault(call_id, self._loop.time())
                        task.cancel()
                for call_id in received.repeated:
                    log.warning("session: call id %d was used before; ignored", call_id)
                message = await self._context.read()
        finally:
            self._state.half_close()

    def _open(self, opened: Open) -> None:
        task = self._tasks[opened.call_id] = asyncio.create_task(self._generate(opened))
        task.add_done_callback(partial(self._ended, opened.call_id))

    async def _generate(self, opened: Open) -> None:
        given = opened.metadata
        metadata = {name: given[name] for name in given}
        if sum(map(len, metadata)) + sum(map(len, metadata.values())) > MAX_METADATA_BYTES:
            metadata = {}
        context = call_context(
            metadata, opened.timeout_ms / 1000 or None, opened.request.request_id, opened.principal
        )
        outbox = self._state.outbox(opened.call_id)
        with self._registry.call():
            error = await run(self._registry, opened.request, context, outbox)
        # Here and not in a callback, which runs one turn of the loop later.
        status = _OK if error is None else to_rpc_status(error).SerializeToString()
        self._state.end(opened.call_id, status)

    def _ended(self, call_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[call_id]
        if (cancelled := self._cancelled.pop(call_id, None)) is not None:
            self._metrics.aborts.observe(self._loop.time() - cancelled)
        # A task that is cancelled before its first step runs none of its code, and the edge waits
        # for this end.
        if task.cancelled():
            self._state.end(call_id, _CANCELLED, discard=True)

    async def _drain(self) -> None:
        await self._registry.draining.wait()
        self._state.drain()

    async def _tell_loads(self) -> None:
        told = None
        while True:
            if (loads := self._registry.loads()) != told:
                self._state.tell_loads(loads)
                told = loads
            await asyncio.sleep(LOAD_SECONDS)

    async def _watch(self, bound: asyncio.Timeout) -> None:
        """Wakes the writer when a pulse is due; ends the session if a write takes too long.

        One task for all messages: a timer for each would cost as much as sending it.
        """
        while True:
            now = self._loop.time()
            if self._write_until is None:
                due = self._state.pulse_at
            elif now >= self._write_until:
                bound.reschedule(now)
                return
            else:
                due = self._write_until
            if now >= due:
                self._wake_writer()
            # `due` may move earlier meanwhile, so never sleep longer than a pulse.
            await asyncio.sleep(min(due - now, PULSE_SECONDS) if now < due else PULSE_SECONDS)

    async def _write_all(self) -> None:
        state, stalled = self._state, False
        while not state.finished:
            if state.has_step:
                # In two turns of the loop every call that goes on adds its output of this engine
                # step, also a call that was just admitted.
                for _ in range(2):
                    if state.goes_on:
                        await asyncio.sleep(0)
            message = state.next_message(self._loop.time())
            if message is None:
                if state.stalled and not stalled:
                    self._metrics.session_stalls.add()
                stalled = state.stalled
                self._sleeping = self._loop.create_future()
                await self._sleeping
            else:
                await self._write(message)

    async def _write(self, message: SessionResponse) -> None:
        if message.HasField("step"):
            self._metrics.session_steps.add()
        self._write_until = self._loop.time() + WRITE_SECONDS
        await self._context.write(message)
        self._write_until = None

    def _wake_writer(self) -> None:
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None and not sleeping.done():
            sleeping.set_result(None)
