"""The steps of a request between a gRPC method and an engine, the same for every kind.

  1. find the model             not found, wrong kind, loading or draining
  2. check the key's allowance  refuses a key without allowance before any other work
  3. check the request          limits that need no model (limits.py)
     hold its bytes             of the process's memory budget, until its output is sent
  4. wait for a permit          bounded in number and time (admission.py)
  5. charge the key             one request, and tokens where they can be estimated
  6. prepare                    the engine validates and tokenizes; after the permit, because a
                                flood of requests must not multiply this work
  7. charge the prompt          and max_tokens; the charge is settled when the call ends
  8. emit `admitted`            the edge may now send a 200
  9. generate                   output goes into the call's outbox, without waiting

What differs between text, embeddings, images and tokens is one row of KINDS. Generate, Embed,
GenerateImage, Tokenize (service.py) and Session (session.py) differ only in how they empty the
outbox. Tokenize does not run the model, so it needs a permit of its own kind (tokenizing.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from contract.memory import MemorySpentError, without_frames
from contract.request_metrics import CANCELLED
from inference.admission import Admission
from inference.emitters import (
    AnyOutbox,
    EmbeddingEmitter,
    Emitter,
    ImageEmitter,
    TextEmitter,
    TokensEmitter,
)
from inference.engines.base import EngineDeadError, Prepared, Request, ServingEngine, Terms
from inference.errors import InferenceError, internal_error
from inference.image_limits import check_image
from inference.limits import check_embed, check_generate, requested_choices, vector_bytes
from inference.metrics import CallRecord
from inference.outbox import Outbox
from inference.rate_limits import Charge, estimated_tokens
from inference.registry import Registry, ServedModel
from inference.rpc import CallContext
from inference.stall import arrives_at_once, stall_limit
from inference.tokenizing import check_tokenize, find_tokenizer
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest

log = logging.getLogger(__name__)


async def run(
    registry: Registry,
    request: Request,
    context: CallContext,
    outbox: AnyOutbox,
    kind: Kind | None = None,
) -> InferenceError | None:
    """Serves a request into `outbox`; returns its error, None if it succeeded.

    `kind` is None for the row of KINDS. Cancelling this coroutine stops the engine's work; it then
    raises CancelledError.
    """
    whole = None
    if isinstance(request, GenerateRequest) and request.output.single_message:
        whole = Outbox(outbox.holding, bounded=False)
    record = CallRecord(request, time.monotonic())
    if registry.observer is not None:
        registry.observer.begin(record, context)
    try:
        async with asyncio.timeout(context.timeout_seconds):
            into = outbox if whole is None else whole
            await _serve(registry, request, context, into, record, kind or KINDS[type(request)])
        if whole is not None:
            response = whole.take()
            whole.sent()
            outbox.part(response)
    except Exception as error:
        failure = _public_error(error, registry, context.request_id)
        record.error = failure.reason
        return without_frames(failure)
    except asyncio.CancelledError:
        record.error = CANCELLED
        raise
    finally:
        registry.metrics.call_ended(record)
        if registry.observer is not None:
            registry.observer.ended(record, context)
    return None


def _public_error(error: Exception, registry: Registry, request_id: str) -> InferenceError:
    """The error for the caller; the original goes to the log."""
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


async def _serve(
    registry: Registry,
    request: Request,
    context: CallContext,
    outbox: AnyOutbox,
    record: CallRecord,
    kind: Kind,
) -> None:
    served: ServedModel
    engine: ServingEngine[Any]
    served, engine = kind.find(registry, request)
    record.model = served.config.id
    served.rate_limiter.check(context.principal)
    terms = served.terms(request.model, context.priority, record.trace_headers)
    kind.check(request, served, terms)
    admission = kind.admission(served)
    try:
        outbox.holding.take(kind.held_bytes(request, served))
    except MemorySpentError as error:
        raise admission.refusal() from error
    async with admission.permit(kind.units(request, served)):
        permitted = record.permitted = time.monotonic()
        estimate = kind.estimate(request, terms)
        with served.rate_limiter.charge(context.principal, estimate) as charge:
            prepared = await engine.prepare(request, terms)
            record.prompt_tokens = prepared.prompt_tokens
            kind.reserve(charge, request, prepared)
            emitter = kind.emitter(served, request, outbox, charge, record.arrived, permitted)
            record.emitter = emitter
            emitter.admit(prepared)
            try:
                async with stall_limit(served.config, request, emitter):
                    await engine.generate(prepared, emitter.emit)
            except Exception as error:
                # A whole response stays a success; the log has the engine's failure after it.
                if emitter.spent is None or isinstance(error, InferenceError):
                    raise
                _public_error(error, registry, context.request_id)


def _reserve_text(charge: Charge, request: GenerateRequest, prepared: Prepared) -> None:
    """Charges the prompt, and max_tokens where the request sets it.

    The output of best_of arrives only at the end, so until then its maximum is charged.
    """
    all_at_once = arrives_at_once(request)
    prompt, answer = prepared.prompt_tokens, prepared.max_output_tokens
    charge.reserve(
        prompt + (answer if all_at_once or request.stopping.HasField("max_tokens") else 0)
    )
    charge.used_tokens = prompt + (answer if all_at_once else 0)


def _reserve_image(charge: Charge, _request: GenerateImageRequest, prepared: Prepared) -> None:
    charge.reserve(prepared.prompt_tokens)
    charge.used_tokens = prepared.prompt_tokens


def _keep_estimate(charge: Charge, _request: EmbedRequest, _prepared: Prepared) -> None:
    """Charges the estimate for a batch that fails, because its processed part is unknown."""
    charge.used_tokens = charge.reserved_tokens


@dataclass(frozen=True, slots=True)
class Kind:
    """The functions that differ between kinds of requests.

    Attributes:
        find: Finds the model and its engine; raises InferenceError.
        check: Checks the limits that need no model; raises InferenceError.
        held_bytes: What it holds of the memory budget from now on.
        units: Permits that the request needs.
        estimate: Tokens to charge before the prompt is counted.
        reserve: Charges the tokens after they were counted; raises InferenceError.
        emitter: Adds output to the call's outbox.
        admission: The permits that it needs.
    """

    find: Callable[[Registry, Any], tuple[ServedModel, Any]]
    check: Callable[[Any, ServedModel, Terms], None]
    held_bytes: Callable[[Any, ServedModel], int]
    units: Callable[[Any, ServedModel], int]
    estimate: Callable[[Any, Terms], int]
    reserve: Callable[[Charge, Any, Prepared], None]
    emitter: type[Emitter]
    admission: Callable[[ServedModel], Admission] = attrgetter("admission")


KINDS: Final[dict[type[Request], Kind]] = {
    GenerateRequest: Kind(
        find=lambda registry, r: registry.text(r.model, chat=r.HasField("chat")),
        check=lambda r, served, terms: check_generate(
            r, served.config, served.engine, terms.context_length
        ),
        held_bytes=lambda r, _served: r.ByteSize(),
        units=lambda r, _served: requested_choices(r),
        estimate=lambda _r, _terms: 0,
        reserve=_reserve_text,
        emitter=TextEmitter,
    ),
    EmbedRequest: Kind(
        find=lambda registry, r: registry.embedding(r.model),
        check=lambda r, served, _terms: check_embed(r, served.engine.model.embedding.dimensions),
        held_bytes=lambda r, served: r.ByteSize() + vector_bytes(r, served.engine.model),
        # One for each MiB of vectors, so that permits bound those as well.
        units=lambda r, served: 1 + vector_bytes(r, served.engine.model) // 2**20,
        estimate=lambda r, terms: estimated_tokens(r, terms.context_length),
        reserve=_keep_estimate,
        emitter=EmbeddingEmitter,
    ),
    GenerateImageRequest: Kind(
        find=lambda registry, r: registry.image(r.model),
        check=lambda r, _served, _terms: check_image(r),
        held_bytes=lambda r, _served: r.ByteSize(),
        units=lambda _r, _served: 1,
        estimate=lambda _r, _terms: 0,
        reserve=_reserve_image,
        emitter=ImageEmitter,
    ),
    TokenizeRequest: Kind(
        find=find_tokenizer,
        check=lambda r, served, terms: check_tokenize(r, served.engine, terms.context_length),
        held_bytes=lambda r, _served: r.ByteSize(),
        units=lambda _r, _served: 1,
        estimate=lambda _r, _terms: 0,
        # A count uses no tokens of the key.
        reserve=lambda _charge, _r, _prepared: None,
        emitter=TokensEmitter,
        admission=attrgetter("tokenizations"),
    ),
}
