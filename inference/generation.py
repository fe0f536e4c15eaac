"""One generation from request to last word: the same for Generate and for Session.

The two differ only in who empties the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from inference.convert import answer_budget, check_generate, requested_choices
from inference.engines.base import EngineDeadError
from inference.errors import InferenceError, internal_error
from inference.outbox import Outbox
from inference.registry import Registry, ServedModel
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.usage_pb2 import Admitted, Timings

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where output goes. Neither method waits."""

    def text(self, text: str) -> None:
        """Plain text of choice 0."""

    def part(self, part: GenerateResponse) -> None:
        """Anything else."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What surrounds a request.

    Attributes:
        request_id: Correlates logs; the caller's or ours, already checked to be printable.
        timeout_seconds: Until the call must have ended; None for no limit.
        priority: Lower runs sooner.
    """

    request_id: str
    timeout_seconds: float | None
    priority: int = 0


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
    served, engine = registry.text(request.model)
    check_generate(request, served.config)
    limit = served.context_length(request.model)
    # The permit comes first: rendering and tokenizing are work that floods must not multiply.
    async with served.admission.permit(requested_choices(request)):
        prepared = await engine.prepare(request)
        max_tokens = answer_budget(request, prepared.prompt_tokens, limit)
        admitted = time.monotonic()
        sink.part(GenerateResponse(admitted=_admitted(served, request, prepared.prompt_tokens)))
        first_output: float | None = None
        async with aclosing(engine.generate(prepared, max_tokens, context.priority)) as events:
            async for event in events:
                if first_output is None:
                    first_output = time.monotonic()
                if isinstance(event, str):
                    sink.text(event)
                    continue
                if event.HasField("usage"):
                    event.timings.CopyFrom(_timings(arrived, admitted, first_output))
                sink.part(event)


def _admitted(served: ServedModel, request: GenerateRequest, prompt_tokens: int) -> Admitted:
    return Admitted(
        call_id=uuid.uuid4().hex,
        model=served.config.id,
        requested_model=request.model,
        created=int(time.time()),
        prompt_tokens=prompt_tokens,
        system_fingerprint=served.engine.system_fingerprint,
    )


def _timings(arrived: float, admitted: float, first_output: float) -> Timings:
    return Timings(
        queue_ms=(admitted - arrived) * 1000,
        first_output_ms=(first_output - admitted) * 1000,
        total_ms=(time.monotonic() - arrived) * 1000,
    )
