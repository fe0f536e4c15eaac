"""Runs an exchange: opens its calls, passes their output to it, sends the bytes it returns.

The state machine (machine.py) does no I/O; this module does. The upstream's reader task calls the
receivers below, so that a token goes from the session to the socket without waking a task. The
handler's own task sleeps until the state changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web
from google.rpc.status_pb2 import Status
from msgspec import Struct

from contract.memory import MemorySpentError
from contract.request_metrics import CANCELLED, operation
from edge.exchange.event_stream import TICK_SECONDS, EventStream
from edge.exchange.machine import OPEN, Exchange, Source, State
from edge.middleware.serve import rate_limit_headers
from edge.openai.errors import OpenAIError, internal_error, overloaded
from edge.openai.pieces import LargeEvent, Output
from edge.state import EdgeRequest
from edge.upstream.transport import Call, CallOptions, UpstreamPart, UpstreamRequest
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse

log = logging.getLogger(__name__)


async def collect(
    request: EdgeRequest,
    exchange: Exchange[Any],
    calls: Sequence[UpstreamRequest],
    options: CallOptions,
    *,
    counted: bool = False,
) -> None:
    """Runs a plain exchange to its end; the translator can then render the document.

    Args:
        request: The HTTP request.
        exchange: WAITING, with one source for each of `calls`.
        calls: Requests for the inference service.
        options: Timeout, metadata and principal of each call.
        counted: Whether the request's holding already has the size of the output.

    Raises:
        OpenAIError: A call was refused or failed.
    """
    with _Running(request, exchange, calls, options, None, counted=counted) as running:
        while not exchange.over:
            await running.changed()
    exchange.raise_error()


async def stream(
    request: EdgeRequest,
    exchange: Exchange[Any],
    calls: Sequence[UpstreamRequest],
    options: CallOptions,
) -> web.StreamResponse:
    """Runs an exchange to the end of its event stream. Takes the same arguments as `collect`.

    Raises:
        OpenAIError: A call was refused or failed before the 200.
        ConnectionError: The client has gone.
    """
    config = request.edge.config
    events = EventStream(request, config)
    with _Running(request, exchange, calls, options, events, counted=True) as running:
        while exchange.state is State.WAITING:
            await running.changed()
        with suppress(TimeoutError):
            async with asyncio.timeout(config.header_hold_seconds):
                while exchange.state is State.ADMITTED:
                    await running.changed()
        running.send(exchange.hold_expired())
        if not exchange.opened:
            exchange.raise_error()
        response = await events.open(rate_limit_headers(exchange.rate_limits))
        try:
            await _send_to_the_end(running, exchange, events)
        except ConnectionError:
            raise
        except Exception:
            # The 200 is sent, so only an event can report the failure.
            running.broken()
            await events.send_queued()
    await events.close()
    return response


async def _send_to_the_end(running: _Running, exchange: Exchange[Any], events: EventStream) -> None:
    await events.send_queued()
    while not exchange.over:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await running.changed()
        except TimeoutError:
            events.tick()
        await events.send_queued()


class _Running:
    """The calls of one exchange; leaving the context cancels those that still run."""

    def __init__(
        self,
        request: EdgeRequest,
        exchange: Exchange[Any],
        calls: Sequence[UpstreamRequest],
        options: CallOptions,
        events: EventStream | None,
        *,
        counted: bool,
    ) -> None:
        self._request = request
        # Monotonic seconds of the first output.
        self.first_output: float | None = None
        self.outcome = request.outcome
        self.counted = counted
        self._exchange = exchange
        self._state = exchange.state
        self._requests = calls
        self._options = options
        self.events = events
        self._calls: list[Call] = []
        # The future that `changed` awaits.
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> _Running:
        edge, exchange = self._request.edge, self._exchange
        edge.exchanges.add(self)
        try:
            for source, call in zip(exchange.sources, self._requests, strict=True):
                receiver = _Receiver(self, exchange, source, source.translate)
                self._calls.append(edge.router.open(call, receiver, self._options))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._request.edge.exchanges.discard(self)
        self._count()
        self._exchange.abandon()
        for call in self._calls:
            call.cancel()
        # Circles, in which Python would keep the response until its next collection.
        self._calls.clear()
        self._exchange.sources.clear()
        if self.events is not None:
            self.events.drop_queued()

    def _count(self) -> None:
        """Tells the metrics how the exchange ended."""
        exchange, spent = self._exchange, self._exchange.spent
        metrics, started = self._request.edge.metrics, self._request.started
        if self.events is not None and spent is not None and self.first_output is not None:
            # For a stream, the time until the first output is here.
            spent.last_seconds -= spent.first_seconds
            spent.first_seconds = self.first_output - started
            spent.last_seconds += spent.first_seconds
        error, stage = "", ""
        if exchange.error is not None:
            error = exchange.error.code or exchange.error.type
        elif not exchange.over:
            is_waiting = exchange.state is State.WAITING
            has_output = self.first_output is not None
            stage = "waiting" if is_waiting else "output" if has_output else "before_output"
            error = CANCELLED
            metrics.cancelled(stage)
        request = self._requests[0]
        if self.outcome is not None:
            first = self.first_output
            self.outcome.set(
                request, spent, None if first is None else first - started, error, stage
            )
        metrics.exchange_ended(operation(request), request.model, started, error, spent)

    async def changed(self) -> None:
        """Returns when the state changes or a large event is queued; look at both before."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def send(self, output: Output) -> None:
        """Sends what an event of the exchange returned; wakes the handler's task if it must act."""
        if self.events is not None:
            try:
                self.events.write(output)
            except MemorySpentError:
                self.fail(overloaded())
                return
        if self._exchange.state is not self._state or isinstance(output, LargeEvent):
            self._state = self._exchange.state
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def hold(self, size: int) -> bool:
        """Counts a part of a document; without room for it the exchange fails: False."""
        try:
            self._request.connection.holding.add(size)
        except MemorySpentError:
            self.fail(overloaded())
            return False
        return True

    def fail(self, error: OpenAIError) -> None:
        """Ends the exchange with an error: a status, or an event if the 200 is sent."""
        if self.events is not None:
            self.events.drop_queued()
        self.send(self._exchange.fail(error))

    def broken(self) -> None:
        """Logs the current exception, a bug of the edge, and ends the exchange with a 500."""
        log.exception("request %s failed", self._request.id)
        self.fail(internal_error())


class _Receiver(Struct, eq=False):
    """Feeds one source.

    Attributes:
        running, exchange, source: Of the call.
        translate: The source's.
        events: The event stream, from the second text on.
    """

    # A struct would print its members, the prompt among them.
    __repr__ = object.__repr__

    running: _Running
    exchange: Exchange[Any]
    source: Source[Any]
    translate: Callable[[str], Output]
    events: EventStream | None = None

    def on_text(self, text: str) -> None:
        """Plain text of choice 0: the hot path."""
        events = self.events
        if events is not None and self.exchange.state is OPEN:
            events.write(self.translate(text))
            return
        running = self.running
        if running.first_output is None:
            running.first_output = time.monotonic()
        self.events = running.events
        running.send(self.source.text(text))

    def on_part(self, part: Any) -> None:
        """Any other message."""
        running = self.running
        if not running.counted and not running.hold(part.ByteSize()):
            return
        if running.first_output is None and _has_output(part):
            running.first_output = time.monotonic()
        if running.outcome is not None and isinstance(part, GenerateResponse):
            running.outcome.finishes += (finish.reason for finish in part.finishes)
        running.send(self.source.part(part))

    def on_end(self, status: Status) -> None:
        """The end of the call."""
        try:
            output = self.source.end(status)
        except Exception:
            self.running.broken()
        else:
            self.running.send(output)


def _has_output(part: UpstreamPart) -> bool:
    """Whether a message has more than the admission."""
    if isinstance(part, GenerateResponse):
        return bool(part.deltas)
    if isinstance(part, GenerateImageResponse):
        return not part.HasField("admitted")
    return True
