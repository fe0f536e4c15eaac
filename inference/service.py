"""The public RPCs: isthmus.v1.InferenceService."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from google.protobuf.message import Message

from contract.memory import SMALL_BYTES, Holding, MemorySpentError, without_frames
from inference.engines.base import Request
from inference.errors import InferenceError, memory_spent
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
        await answer(self._registry, request, context, Outbox(Holding(self._registry.memory)))

    async def GenerateImage(  # noqa: N802
        self, request: GenerateImageRequest, context: ServicerContext
    ) -> None:
        """Streams progress, previews and images."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        await answer(self._registry, request, context, outbox, pulse=GenerateImageResponse())

    async def Embed(self, request: EmbedRequest, context: ServicerContext) -> None:  # noqa: N802
        """Embeds a batch."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        await answer(self._registry, request, context, outbox)

    async def Tokenize(  # noqa: N802
        self, request: TokenizeRequest, context: ServicerContext
    ) -> None:
        """Counts the tokens of a prompt."""
        outbox = MessageOutbox(Holding(self._registry.memory))
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
    """Writes the outbox's messages until the call ends; then ends it with its error, if any.

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
    sending = Holding(registry.sending)
    call = rpc_context(context, request.request_id)
    try:
        with registry.call():
            work = asyncio.create_task(run(registry, request, call, outbox, kind))
            error = await _deliver(registry, work, Writer(context, sending), outbox, pulse)
        if error is not None:
            # gRPC cannot drop a message that it holds, and sends the status after it. So this waits
            # until the caller has read the message or has disconnected.
            await abort(context, error)
    finally:
        sending.close()


async def _deliver(
    registry: Registry,
    work: asyncio.Task[InferenceError | None],
    writer: Writer,
    outbox: Outbox | MessageOutbox,
    pulse: GenerateImageResponse | None,
) -> InferenceError | None:
    """Writes the output of `work`; returns the error of the call."""
    filled = asyncio.Event()
    outbox.on_filled = lambda _size: filled.set()
    work.add_done_callback(lambda _work: filled.set())
    try:
        while not work.done() or outbox:
            try:
                async with asyncio.timeout(PULSE_SECONDS if pulse is not None else None):
                    await filled.wait()
            except TimeoutError:
                if pulse is not None:
                    await writer.write(pulse, outbox.holding)
            filled.clear()
            while outbox:
                await writer.write(outbox.take(), outbox.holding)
                outbox.sent()
    except InferenceError as slow_reader:
        return without_frames(slow_reader)
    finally:
        cancelled, is_running = time.monotonic(), work.cancel()
        # A callback, because gRPC may cancel this wait, too.
        work.add_done_callback(lambda _: outbox.holding.close())
        await asyncio.wait([work])
        while outbox:  # The call may last until its caller leaves; nobody gets the rest.
            outbox.take()
        if is_running:
            registry.metrics.aborts.observe(time.monotonic() - cancelled)
    return work.result()


class Writer:
    """Writes the messages of one call.

    Args:
        context: The RPC's context.
        sending: What gRPC holds of the call's output.
        begun: Whether the call may have sent a message already.
    """

    def __init__(self, context: ServicerContext, sending: Holding, *, begun: bool = False) -> None:
        self._context = context
        self._sending = sending
        self._begun = begun

    async def write(self, message: Message, holding: Holding) -> None:
        """Writes one message.

        Raises:
            InferenceError: slow_reader, the write took more than STALL_SECONDS, or other calls
                needed the memory; out_of_memory, gRPC holds too much that nobody reads.
        """
        if (size := message.ByteSize()) > SMALL_BYTES:
            try:
                self._sending.add(size)
            except MemorySpentError as error:
                raise memory_spent() from error
        if not self._begun:
            # Initial metadata is sent before the first message: if a cancelled write had sent it,
            # gRPC would send it again with the status, and fail.
            await self._context.send_initial_metadata(())
            self._begun = True
        try:
            async with asyncio.timeout(STALL_SECONDS) as stall:
                holding.blocked(partial(stall.reschedule, 0))
                await self._context.write(message)
                holding.unblocked()
        except TimeoutError as error:
            if not stall.expired():
                raise
            raise InferenceError(
                "slow_reader", "The caller does not read its answer fast enough."
            ) from error
        self._sending.release()
