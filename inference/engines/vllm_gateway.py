"""vllm.grpc.engine, the service that gateways such as SMG expect of a vLLM worker.

The package smg-grpc-servicer implements it on vLLM's engine. Here each of its Generate calls goes
through the steps of every other text request (serve.py), as a request of the one model:

    smg's request  ->  GenerateRequest, whose limits are checked  ->  permit, charge, prepare
                   ->  the package's Generate  ->  smg's responses, which are counted and passed on

Refused are what reaches beyond the caller's own requests (the prefix cache, the profiler, events of
the KV cache) and inputs that name addresses or memory (media, transfers of KV caches).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NoReturn, cast
from weakref import proxy

import grpc
from google.protobuf.message import Message
from smg_grpc_proto import vllm_engine_pb2 as smg
from smg_grpc_servicer.vllm.servicer import VllmEngineServicer

from contract import refusals
from contract.memory import Holding
from contract.request_metrics import Spent
from inference.emitters import Emitter
from inference.engines.base import Prepared, Terms
from inference.engines.vllm_engine import PreparedGeneration, VllmEngine
from inference.engines.vllm_errors import engine_errors
from inference.errors import InferenceError, below
from inference.outbox import MessageOutbox
from inference.registry import Registry, ServedModel
from inference.rpc import ServicerContext, abort, rpc_context
from inference.serve import KINDS
from inference.service import Writer, answer
from isthmus.v1.generate_pb2 import FinishReason, GenerateRequest

_REFUSED_INPUTS: Final = (
    "mm_inputs",
    "extra_mm_inputs",
    "media_refs",
    "kv_transfer_params",
    "kv_transfer_params_json",
)
# Rules of vLLM that `prepare` may have rewritten, and the package's fields of them.
_RULES: Final = {"json": "json_schema", "regex": "regex", "grammar": "grammar"}
_FINISHES: Final = {
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
}


class GatewayService(VllmEngineServicer):  # type: ignore[misc]
    """The package's service for one model.

    Args:
        registry: The models of the process.
        served: The model; its engine has started.
    """

    def __init__(self, registry: Registry, served: ServedModel) -> None:
        self._vllm = cast("VllmEngine", served.engine)
        # Weak, because vLLM logs an error if its engine is freed as late as this object.
        super().__init__(proxy(self._vllm.async_llm), time.time())
        # Below errors it logs texts of vLLM's refusals, which can hold prompts.
        logging.getLogger("smg_grpc_servicer").setLevel(logging.ERROR)
        self._registry = registry
        self._served = served
        self._calls: set[_Call] = set()

    async def Generate(  # noqa: N802
        self, request: smg.GenerateRequest, context: ServicerContext
    ) -> None:
        """Streams what the package makes of the request."""
        call = _Call(self, self._vllm, request, _name(context, request.request_id))
        usual = KINDS[GenerateRequest]

        def check(plain: GenerateRequest, served: ServedModel, terms: Terms) -> None:
            _check(request)
            usual.check(plain, served, terms)

        kind = replace(
            usual,
            find=lambda registry, r: (registry.text(r.model, chat=False)[0], call),
            check=check,
            emitter=_GatewayEmitter,
        )
        plain = _plain(request, self._served.config.id)
        outbox = MessageOutbox(Holding(self._registry.memory))
        self._calls.add(call)
        try:
            await answer(self._registry, plain, context, outbox, kind=kind)
        except asyncio.CancelledError:
            if not call.aborted:
                raise
            call.task.uncancel()
            end = smg.GenerateComplete(finish_reason="abort")
            await self._write(context, smg.GenerateResponse(complete=end))
        finally:
            self._calls.discard(call)

    def steps(self, request: smg.GenerateRequest, context: _Context) -> AsyncGenerator[Any, None]:
        """The package's responses to a request that was admitted."""
        return super().Generate(request, context)  # type: ignore[no-any-return]

    async def Abort(  # noqa: N802
        self, request: smg.AbortRequest, context: ServicerContext
    ) -> smg.AbortResponse:
        """Ends requests of the same key; their streams end with the finish reason "abort"."""
        names = {_name(context, request_id) for request_id in request.request_ids}
        for call in self._calls:
            if call.name in names:
                call.abort()
        return smg.AbortResponse()

    async def HealthCheck(  # noqa: N802
        self,
        request: smg.HealthCheckRequest,  # noqa: ARG002
        context: ServicerContext,  # noqa: ARG002
    ) -> smg.HealthCheckResponse:
        """Whether the model takes requests."""
        healthy = self._served.ready() and not self._registry.draining.is_set()
        return smg.HealthCheckResponse(healthy=healthy, message="" if healthy else "not ready")

    async def GetLoads(  # noqa: N802
        self, request: smg.GetLoadsRequest, context: ServicerContext
    ) -> smg.GetLoadsResponse:
        """The package's figures, with the requests and the KV cache as this process knows them."""
        response = await super().GetLoads(request, context)
        load, first = self._served.load(), response.loads[0]
        first.num_running_reqs, first.num_waiting_reqs = load.running, load.waiting
        first.num_total_reqs = load.running + load.waiting
        first.token_usage = load.kv_cache.usage
        return response

    async def GetTokenizer(self, request: Any, context: ServicerContext) -> None:  # noqa: N802
        """Streams the files of the tokenizer."""
        async for chunk in super().GetTokenizer(request, context):
            await self._write(context, chunk)

    async def _write(self, context: ServicerContext, message: Message) -> None:
        holding, sending = Holding(self._registry.memory), Holding(self._registry.sending)
        try:
            await Writer(context, sending, begun=True).write(message, holding)
        except InferenceError as slow_reader:
            await abort(context, slow_reader)
        finally:
            holding.close()
            sending.close()

    async def _refuse(self, request: Any, context: ServicerContext) -> NoReturn:  # noqa: ARG002
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Isthmus does not serve this method.")

    Embed = FlushCache = StartProfile = StopProfile = SubscribeKvEvents = _refuse


def _name(context: ServicerContext, request_id: str) -> str:
    """The request's name in the engine, which differs between keys."""
    return f"{rpc_context(context, '').principal}/{request_id or uuid.uuid4().hex}"


def _check(request: smg.GenerateRequest) -> None:
    """Refuses what GenerateRequest has no field for.

    Raises:
        InferenceError: It has an input or a rule that is not served, or logprobs of all tokens.
    """
    for field, _ in request.ListFields():
        if field.name in _REFUSED_INPUTS:
            raise InferenceError.of(refusals.unsupported_parameter(field.name))
    params = request.sampling_params
    if params.HasField("structural_tag"):
        # It can hold patterns, the time of whose compilation nothing would bound.
        raise InferenceError.of(refusals.unsupported_parameter("structural_tag"))
    for name in ("logprobs", "prompt_logprobs"):
        if (count := getattr(params, name)) < 0:
            raise below(name, 0, count)


def _plain(request: smg.GenerateRequest, model: str) -> GenerateRequest:
    """A GenerateRequest with the parameters that the limits of a request apply to."""
    params = request.sampling_params
    plain = GenerateRequest(request_id=request.request_id, model=model)
    if request.HasField("text"):
        plain.text = request.text
    elif request.HasField("tokenized"):
        plain.token_ids.ids.extend(request.tokenized.input_ids)
    plain.output.n = params.n or 1
    for name in ("logprobs", "prompt_logprobs"):
        if params.HasField(name):
            setattr(plain.output, name, max(getattr(params, name), 0))
    if params.HasField("max_tokens"):
        plain.stopping.max_tokens = params.max_tokens
    plain.stopping.min_tokens = params.min_tokens
    plain.stopping.ignore_eos = params.ignore_eos
    plain.stopping.strings.extend(params.stop)
    plain.stopping.token_ids.extend(params.stop_token_ids)
    if params.HasField("truncate_prompt_tokens"):
        plain.truncate_prompt_tokens = params.truncate_prompt_tokens
    rule = params.WhichOneof("constraint")
    if rule == "choice":
        plain.constraint.choices.values.extend(params.choice.choices)
    elif rule in ("json_schema", "json_object", "regex", "grammar"):
        setattr(plain.constraint, rule, getattr(params, rule))
    return plain


class _Call:
    """Serves one request, in the place of an engine (base.py).

    Attributes:
        name: Its name in the engine.
        task: The task of its RPC.
        aborted: Whether Abort ended it.
    """

    def __init__(
        self, service: GatewayService, engine: VllmEngine, request: smg.GenerateRequest, name: str
    ) -> None:
        self._service = service
        self._engine = engine
        self._request = request
        self.name = name
        self.task = cast("asyncio.Task[None]", asyncio.current_task())
        self.aborted = False

    def abort(self) -> None:
        """Ends it wherever it is, in the queue for a permit too; a second time does nothing."""
        if not self.aborted:
            self.aborted = True
            self.task.cancel()

    async def prepare(self, request: GenerateRequest, terms: Terms) -> Prepared:
        """Checks and counts the prompt; the package then gets these tokens, and the rule."""
        prepared = await self._engine.prepare(request, terms)
        own = self._request
        for name, field in _RULES.items():
            if (rule := getattr(prepared.params.structured_outputs, name, None)) is not None:
                setattr(own.sampling_params, field, rule)
        if own.HasField("text") or own.sampling_params.HasField("truncate_prompt_tokens"):
            own.tokenized.input_ids[:] = prepared.prompt_token_ids
            own.sampling_params.ClearField("truncate_prompt_tokens")
        own.request_id = self.name
        return prepared

    async def generate(
        self, prepared: PreparedGeneration, emit: Callable[[tuple[int, Any]], None]
    ) -> None:
        """Emits the package's responses, each with the number of its new tokens."""
        engine = self._engine.async_llm
        context = _Context(prepared.terms.trace_headers or {})
        try:
            with (
                self._engine.clock.call(engine, prepared.prompt_tokens) as call,
                engine_errors(engine, prepared.plan.request),
            ):
                async with aclosing(self._service.steps(self._request, context)) as responses:
                    async for response in responses:
                        tokens = self._new_tokens(response)
                        call.output(tokens)
                        emit((tokens, response))
        except ValueError as error:
            raise InferenceError(
                "invalid_request_error", "vLLM does not accept the sampling parameters."
            ) from error

    def _new_tokens(self, response: smg.GenerateResponse) -> int:
        # The last message of a stream has the tokens of the message before it again.
        streamed = self._request.stream
        return len(response.chunk.token_ids if streamed else response.complete.output_ids)


class _Context:
    """The part of a ServicerContext that the package's Generate uses."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = tuple(metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def abort(self, *_: object) -> NoReturn:
        """Raises the exception again that the package handles while it calls this."""
        raise


class _GatewayEmitter(Emitter):
    """Counts the package's responses, and passes them on."""

    def admit(self, prepared: Prepared) -> None:  # noqa: ARG002
        self.admitted = time.monotonic()
        self._output_tokens = self._ended = 0

    def emit(self, output: tuple[int, smg.GenerateResponse]) -> None:
        tokens, response = output
        self.outputs += 1
        now = time.monotonic()
        if self.first_output is None:
            self.first_output = now
        self._output_tokens += tokens
        self.charge.used_tokens += tokens
        if response.HasField("complete"):
            last, request = response.complete, cast("GenerateRequest", self.request)
            if (reason := _FINISHES.get(last.finish_reason)) is not None:
                self.finishes.append(reason)
            self._ended += 1
            if self._ended == request.output.n:
                first = self.first_output - self.arrived
                spent = Spent(last.prompt_tokens, self._output_tokens, first, now - self.arrived)
                self.spent = spent
        self.outbox.part(response)
