"""Runs an exchange: opens its calls, passes their output to it, sends the bytes it returns.

The state machine (machine.py) does no I/O; this module does. The upstream's reader task calls the
receivers below, so that a token goes from the session to the socket without waking a task. The
handler's own task sleeps until the state changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web
from google.rpc.status_pb2 import Status

from contract.memory import MemorySpentError
from contract.request_metrics import CANCELLED, operation
from edge.client_bounds import CONNECTION
from edge.exchange.event_stream import TICK_SECONDS, EventStream
from edge.exchange.machine import OPEN, Exchange, State
from edge.middleware.serve import rate_limit_headers
from edge.observer import OUTCOME
from edge.openai.errors import OpenAIError, internal_error, overloaded
from edge.openai.pieces import LargeEvent, Output
from edge.state import EDGE, REQUEST_ID, STARTED
from edge.upstream.transport import Call, CallOptions, Receiver, UpstreamPart, UpstreamRequest
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse

log = logging.getLogger(__name__)


async def collect(
    request: web.Request,
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
    request: web.Request,
    exchange: Exchange[Any],
    calls: Sequence[UpstreamRequest],
    options: CallOptions,
) -> web.StreamResponse:
    """Runs an exchange to the end of its event stream. Takes the same arguments as `collect`.

    Raises:
        OpenAIError: A call was refused or failed before the 200.
        ConnectionError: The client has gone.
    """
    config = request.app[EDGE].config
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
        request: web.Request,
        exchange: Exchange[Any],
        calls: Sequence[UpstreamRequest],
        options: CallOptions,
        events: EventStream | None,
        *,
        counted: bool,
    ) -> None:
        self._edge = request.app[EDGE]
        self._started = request[STARTED]
        # Monotonic seconds of the first output.
        self.first_output: float | None = None
        self._request_id = request[REQUEST_ID]
        self.outcome = request.get(OUTCOME)
        self._holding = request[CONNECTION].holding
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
        self._edge.exchanges.add(self)
        try:
            for number, call in enumerate(self._requests):
                receiver = _Receiver(self, self._exchange, number)
                self._calls.append(self._edge.router.open(call, receiver, self._options))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._edge.exchanges.discard(self)
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
        exchange, metrics, spent = self._exchange, self._edge.metrics, self._exchange.spent
        if self.events is not None and spent is not None and self.first_output is not None:
            # For a stream, the time until the first output is here.
            spent.last_seconds -= spent.first_seconds
            spent.first_seconds = self.first_output - self._started
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
                request, spent, None if first is None else first - self._started, error, stage
            )
        metrics.exchange_ended(operation(request), request.model, self._started, error, spent)

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
            self._holding.add(size)
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
        log.exception("request %s failed", self._request_id)
        self.fail(internal_error())


class _Receiver(Receiver):
    """Feeds one source."""

    __slots__ = ("_events", "_exchange", "_running", "_source", "_translate")

    def __init__(self, running: _Running, exchange: Exchange[Any], number: int) -> None:
        self._running = running
        self._exchange = exchange
        self._source = exchange.sources[number]
        self._translate = self._source.translate
        # The event stream, from the second text on.
        self._events: EventStream | None = None

    def on_text(self, text: str) -> None:
        """Plain text of choice 0: the hot path."""
        events = self._events
        if events is not None and self._exchange.state is OPEN:
            events.write(self._translate(text))
            return
        running = self._running
        if running.first_output is None:
            running.first_output = time.monotonic()
        self._events = running.events
        running.send(self._source.text(text))

    def on_part(self, part: Any) -> None:
        """Any other message."""
        if not self._running.counted and not self._running.hold(part.ByteSize()):
            return
        if self._running.first_output is None and _has_output(part):
            self._running.first_output = time.monotonic()
        if self._running.outcome is not None and isinstance(part, GenerateResponse):
            self._running.outcome.finishes += (finish.reason for finish in part.finishes)
        self._running.send(self._source.part(part))

    def on_end(self, status: Status) -> None:
        """The end of the call."""
        try:
            output = self._source.end(status)
        except Exception:
            self._running.broken()
        else:
            self._running.send(output)


def _has_output(part: UpstreamPart) -> bool:
    """Whether a message has more than the admission."""
    if isinstance(part, GenerateResponse):
        return bool(part.deltas)
    if isinstance(part, GenerateImageResponse):
        return not part.HasField("admitted")
    return True
