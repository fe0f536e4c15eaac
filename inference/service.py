"""The public RPCs: isthmus.v1.InferenceService."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from contract.memory import Holding
from inference.engines.base import Request
from inference.errors import InferenceError
from inference.outbox import MessageOutbox, Outbox
from inference.registry import Registry
from inference.rpc import ServicerContext, abort, rpc_context
from inference.serve import Kind, run
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceServicer
from isthmus.v1.models_pb2 import ListModelsRequest, ListModelsResponse
from isthmus.v1.tokenize_pb2 import TokenizeRequest

# Seconds that writing a message may take; then the call ends with slow_reader.
STALL_SECONDS: Final = 30.0
# Seconds without output after which an image call gets an empty message, as a keep-alive.
PULSE_SECONDS: Final = 5.0


class InferenceService(InferenceServiceServicer):
    """Answers internal services, and people who debug with grpcurl.

    Args:
        registry: The models.
        knows_keys: Whether the process has a keys file.
    """

    def __init__(self, registry: Registry, *, knows_keys: bool = False) -> None:
        self._registry = registry
        self._knows_keys = knows_keys

    async def Generate(self, request: GenerateRequest, context: ServicerContext) -> None:  # noqa: N802
        """Streams the output; text that waits for the network is sent as one message."""
        outbox = Outbox(Holding(self._registry.memory))
        with self._registry.call():
            await answer(self._registry, request, context, outbox)

    async def GenerateImage(  # noqa: N802
        self, request: GenerateImageRequest, context: ServicerContext
    ) -> None:
        """Streams progress, previews and images."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        with self._registry.call():
            await answer(self._registry, request, context, outbox, pulse=GenerateImageResponse())

    async def Embed(self, request: EmbedRequest, context: ServicerContext) -> None:  # noqa: N802
        """Embeds a batch."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        with self._registry.call():
            await answer(self._registry, request, context, outbox)

    async def Tokenize(  # noqa: N802
        self, request: TokenizeRequest, context: ServicerContext
    ) -> None:
        """Counts the tokens of a prompt."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        with self._registry.call():
            await answer(self._registry, request, context, outbox)

    async def ListModels(  # noqa: N802
        self,
        request: ListModelsRequest,  # noqa: ARG002
        context: ServicerContext,  # noqa: ARG002
    ) -> ListModelsResponse:
        """Lists the models with what they can do."""
        return ListModelsResponse(
            models=[served.describe() for served in self._registry.models],
            knows_keys=self._knows_keys,
        )


async def answer(
    registry: Registry,
    request: Request,
    context: ServicerContext,
    outbox: Outbox | MessageOutbox,
    *,
    pulse: GenerateImageResponse | None = None,
    kind: Kind | None = None,
) -> None:
    """Writes the outbox's messages until the call ends.

    The engine does not wait for a slow caller. If the caller leaves or stops reading, the
    engine's work for it is cancelled.

    Args:
        registry: The models.
        request: The caller's request.
        context: The RPC's context.
        outbox: An empty outbox.
        pulse: Sent after PULSE_SECONDS without output; None to send nothing.
        kind: How the request is served; None for the row of KINDS.
    """
    call = rpc_context(context, request.request_id)
    filled = asyncio.Event()
    outbox.on_filled = lambda _size: filled.set()
    work = asyncio.create_task(run(registry, request, call, outbox, kind))
    work.add_done_callback(lambda _work: filled.set())
    try:
        while not work.done() or outbox:
            try:
                async with asyncio.timeout(PULSE_SECONDS if pulse is not None else None):
                    await filled.wait()
            except TimeoutError:
                await write(context, pulse, outbox.holding)
            filled.clear()
            while outbox:
                await write(context, outbox.take(), outbox.holding)
                outbox.sent()
    except InferenceError as slow_reader:
        await abort(context, slow_reader)
    finally:
        cancelled, is_running = time.monotonic(), work.cancel()
        # A callback, because gRPC may cancel this wait, too.
        work.add_done_callback(lambda _: outbox.holding.close())
        await asyncio.wait([work])
        if is_running:
            registry.metrics.aborts.observe(time.monotonic() - cancelled)
    if error := work.result():
        await abort(context, error)


async def write(context: ServicerContext, message: object, holding: Holding) -> None:
    """Writes one message.

    Raises:
        InferenceError: slow_reader, the write took more than STALL_SECONDS, or other calls needed
            the memory.
    """
    try:
        async with asyncio.timeout(STALL_SECONDS) as stall:
            holding.blocked(partial(stall.reschedule, 0))
            await context.write(message)
            holding.unblocked()
    except TimeoutError as error:
        if not stall.expired():
            raise
        raise InferenceError(
            "slow_reader", "The caller does not read its answer fast enough."
        ) from error
