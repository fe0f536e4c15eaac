"""The public face: isthmus.v1.InferenceService."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from inference.call_context import ServicerContext, abort, rpc_context
from inference.drawing import draw
from inference.errors import InferenceError
from inference.generation import public_error, run
from inference.limits import MAX_MATRIX_BYTES, check_embed
from inference.outbox import Outbox
from inference.registry import Registry
from inference.token_inputs import read_inputs
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceServicer
from isthmus.v1.models_pb2 import ListModelsRequest, ListModelsResponse
from isthmus.v1.usage_pb2 import Timings, Usage

# Of English text, by OpenAI's rule of thumb.
_CHARACTERS_A_TOKEN: Final = 4


class _Mailbox:
    """An outbox that wakes the one writer of its call."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.filled = asyncio.Event()

    def text(self, text: str) -> None:
        self.outbox.text(text)
        self.filled.set()

    def part(self, part: GenerateResponse) -> None:
        self.outbox.part(part)
        self.filled.set()


class InferenceService(InferenceServiceServicer):
    """Answers internal services, and whoever debugs with grpcurl."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Generate(self, request: GenerateRequest, context: ServicerContext) -> None:  # noqa: N802
        """Streams what the model says; text that waits for the network leaves as one message."""
        call = rpc_context(context, request.request_id)
        mailbox = _Mailbox()
        work = asyncio.create_task(run(self._registry, request, call, mailbox))
        work.add_done_callback(lambda _: mailbox.filled.set())
        try:
            while not work.done() or mailbox.outbox:
                await mailbox.filled.wait()
                mailbox.filled.clear()
                if mailbox.outbox:
                    await context.write(mailbox.outbox.take())
        finally:
            # The caller has gone: the engine must not go on for nobody.
            work.cancel()
            await asyncio.wait([work])
        if error := work.result():
            await abort(context, error)

    async def Embed(self, request: EmbedRequest, context: ServicerContext) -> EmbedResponse:  # noqa: N802
        """Embeds a batch."""
        call = rpc_context(context, request.request_id)
        try:
            with self._registry.call():
                async with asyncio.timeout(call.timeout_seconds):
                    return await self._embed(request, call.principal)
        except Exception as error:
            await abort(context, public_error(error, self._registry, call.request_id))

    async def _embed(self, request: EmbedRequest, principal: str) -> EmbedResponse:
        arrived = time.monotonic()
        served, engine = self._registry.embedding(request.model)
        check_embed(request)
        served.rate_limiter.check(principal)
        dimensions = request.dimensions if request.HasField("dimensions") else None
        columns = min(dimensions or 2**32, engine.model.embedding.dimensions)
        if len(request.inputs) * columns * 4 > MAX_MATRIX_BYTES:
            raise InferenceError(
                "array_above_max_length",
                "Invalid 'input': the vectors would exceed what one answer may hold.",
                param="input",
            )
        async with served.admission.permit(1):
            admitted = time.monotonic()
            context_length = served.context_length(request.model)
            tokens = _estimated_tokens(request, context_length)
            with served.rate_limiter.charge(principal, tokens) as charge:
                inputs = await asyncio.to_thread(
                    read_inputs, request, served.token_inputs(request.model)
                )
                # Only the engine can count: what it does not end costs what it was thought to.
                charge.used_tokens = tokens
                result = await engine.embed(
                    inputs,
                    dimensions=dimensions,
                    max_input_tokens=context_length,
                    truncate=request.truncate,
                )
                charge.used_tokens = sum(result.token_counts)
        finished = time.monotonic()
        return EmbedResponse(
            model=served.config.id,
            dimensions=result.vectors.shape[1],
            vectors=result.vectors.astype("<f4", copy=False).tobytes(),
            token_counts=result.token_counts,
            usage=Usage(prompt_tokens=charge.used_tokens),
            timings=Timings(
                queue_ms=(admitted - arrived) * 1000, total_ms=(finished - arrived) * 1000
            ),
            rate_limits=charge.rate_limits(),
        )

    async def GenerateImage(  # noqa: N802
        self, request: GenerateImageRequest, context: ServicerContext
    ) -> None:
        """Draws pictures, telling how far it is; a caller that leaves stops the pipeline."""
        call = rpc_context(context, request.request_id)
        try:
            with self._registry.call():
                async with asyncio.timeout(call.timeout_seconds):
                    await draw(self._registry, request, call.principal, context.write)
        except Exception as error:
            await abort(context, public_error(error, self._registry, call.request_id))

    async def ListModels(  # noqa: N802
        self,
        request: ListModelsRequest,  # noqa: ARG002
        context: ServicerContext,  # noqa: ARG002
    ) -> ListModelsResponse:
        """Lists the models with what they can do."""
        return ListModelsResponse(models=[served.describe() for served in self._registry.models])


def _estimated_tokens(request: EmbedRequest, context_length: int) -> int:
    """About what the engine will count, from 1 to the context for each input."""
    counts = (
        -(-len(text) // _CHARACTERS_A_TOKEN) if (text := item.text) else len(item.token_ids.ids)
        for item in request.inputs
    )
    return sum(min(count, context_length) for count in counts)
