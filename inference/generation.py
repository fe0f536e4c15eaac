"""One generation from request to last word: the same for Generate and for Session.

The two differ only in who empties the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import Protocol

from inference.engines.base import EngineDeadError
from inference.errors import InferenceError, internal_error
from inference.limits import answer_budget, check_generate, requested_choices
from inference.outbox import Outbox
from inference.rate_limits import Charge
from inference.registry import Registry, ServedModel
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.usage_pb2 import Admitted, Timings

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where output goes. Neither method waits."""

    def text(self, text: str) -> None:
        """Plain text of choice 0."""

    def part(self, part: GenerateResponse) -> object:
        """Anything else; nobody changes it from now on."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What surrounds a request.

    Attributes:
        request_id: Correlates logs; the caller's or ours, already checked to be printable.
        timeout_seconds: Until the call must have ended; None for no limit.
        priority: Lower runs sooner.
        principal: Id of the key whose allowance is used; empty where there is none.
    """

    request_id: str
    timeout_seconds: float | None
    priority: int = 0
    principal: str = ""


async def run(
    registry: Registry, request: GenerateRequest, context: CallContext, sink: Sink
) -> InferenceError | None:
    """Generates into `sink` and returns how it failed, None when it did not.

    Cancelling this coroutine aborts the engine's work; it then raises CancelledError.
    """
    whole = Outbox(bounded=False) if request.output.single_message else None
    try:
        with registry.call():
            async with asyncio.timeout(context.timeout_seconds):
                await _generate(registry, request, context, sink if whole is None else whole)
            if whole is not None:
                sink.part(whole.take())
    except Exception as error:
        return public_error(error, registry, context.request_id)
    return None


def public_error(error: Exception, registry: Registry, request_id: str) -> InferenceError:
    """What the caller is told of an exception; the log is told the rest."""
    if isinstance(error, InferenceError):
        return error
    if isinstance(error, TimeoutError):
        return InferenceError("deadline_exceeded", "The request timed out.")
    if isinstance(error, EngineDeadError):
        registry.dead.set()
        log.error("request %s: the engine died", request_id, exc_info=error)
        return InferenceError(
            "engine_died",
            "The engine stopped while it processed your request. Please try again.",
            retry_after_ms=1000,
        )
    log.error("request %s failed", request_id, exc_info=error)
    return internal_error()


async def _generate(
    registry: Registry, request: GenerateRequest, context: CallContext, sink: Sink
) -> None:
    arrived = time.monotonic()
    served, engine = registry.text(request.model, chat=request.HasField("chat"))
    # First of all: nothing is done for a key that has nothing left, not even checks.
    served.rate_limiter.check(context.principal)
    limit = served.context_length(request.model)
    check_generate(request, served.config, engine.model.text, limit)
    # The permit comes first: rendering and tokenizing are work that floods must not multiply.
    choices = requested_choices(request)
    async with served.admission.permit(choices):
        with served.rate_limiter.charge(context.principal) as charge:
            prepared = await engine.prepare(request)
            max_tokens = answer_budget(request, prepared.prompt_tokens, limit)
            _reserve(charge, request, prepared.prompt_tokens, max_tokens * choices)
            head = admission_head(served, request.model, prepared.prompt_tokens, charge)
            sink.part(GenerateResponse(admitted=head))
            voice = _Voice(sink, charge, arrived)
            await engine.generate(prepared, max_tokens, context.priority, voice.say)


def _reserve(charge: Charge, request: GenerateRequest, prompt_tokens: int, answer: int) -> None:
    """Sets tokens aside, and says how many are used should the answer end before its first word.

    Nothing of best_of is to be seen before its end: until then all of it counts as made.
    """
    output = request.output
    unseen = output.best_of > max(output.n, 1)
    charge.reserve(
        prompt_tokens + (answer if unseen or request.stopping.HasField("max_tokens") else 0)
    )
    charge.used_tokens = prompt_tokens + (answer if unseen else 0)


class _Voice:
    """Hands output on, and counts tokens in case that no usage ends them: one for each piece."""

    __slots__ = ("_admitted", "_arrived", "_charge", "_first_output", "_sink")

    def __init__(self, sink: Sink, charge: Charge, arrived: float) -> None:
        self._sink = sink
        self._charge = charge
        self._arrived = arrived
        self._admitted = time.monotonic()
        self._first_output: float | None = None

    def say(self, event: str | GenerateResponse) -> None:
        if self._first_output is None:
            self._first_output = time.monotonic()
        if isinstance(event, str):
            self._charge.used_tokens += 1
            self._sink.text(event)
            return
        if event.HasField("usage"):
            self._charge.used_tokens = event.usage.prompt_tokens + event.usage.completion_tokens
            event.timings.CopyFrom(timings(self._arrived, self._admitted, self._first_output))
        else:
            self._charge.used_tokens += len(event.deltas)
        self._sink.part(event)


def admission_head(
    served: ServedModel, requested_model: str, prompt_tokens: int, charge: Charge
) -> Admitted:
    """What a caller is told first."""
    return Admitted(
        call_id=os.urandom(16).hex(),
        model=served.config.id,
        requested_model=requested_model,
        created=int(time.time()),
        prompt_tokens=prompt_tokens,
        system_fingerprint=served.engine.system_fingerprint,
        rate_limits=charge.rate_limits(),
    )


def timings(arrived: float, admitted: float, first_output: float) -> Timings:
    """From three times of the monotonic clock, in seconds; the last output is now."""
    return Timings(
        queue_ms=(admitted - arrived) * 1000,
        first_output_ms=(first_output - admitted) * 1000,
        total_ms=(time.monotonic() - arrived) * 1000,
    )
