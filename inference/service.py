"""The public RPCs: isthmus.v1.InferenceService."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from contract.memory import SMALL_BYTES, Holding, MemorySpentError, without_frames
from inference.engines.base import Part, Request
from inference.errors import InferenceError, memory_spent
from inference.outbox import MessageOutbox, Outbox
from inference.registry import Registry
from inference.rpc import ServicerContext, abort, rpc_context
from inference.serve import run
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
        await self._stream(request, context, Outbox(Holding(self._registry.memory)))

    async def GenerateImage(  # noqa: N802
        self, request: GenerateImageRequest, context: ServicerContext
    ) -> None:
        """Streams progress, previews and images."""
        outbox = MessageOutbox(Holding(self._registry.memory))
        await self._stream(request, context, outbox, GenerateImageResponse())

    async def Embed(self, request: EmbedRequest, context: ServicerContext) -> None:  # noqa: N802
        """Embeds a batch."""
        await self._stream(request, context, MessageOutbox(Holding(self._registry.memory)))

    async def Tokenize(  # noqa: N802
        self, request: TokenizeRequest, context: ServicerContext
    ) -> None:
        """Counts the tokens of a prompt."""
        await self._stream(request, context, MessageOutbox(Holding(self._registry.memory)))

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

    async def _stream(
        self,
        request: Request,
        context: ServicerContext,
        outbox: Outbox | MessageOutbox,
        pulse: GenerateImageResponse | None = None,
    ) -> None:
        """Writes the outbox's messages until the call ends; then ends it with its error, if any.

        Args:
            request: The caller's request.
            context: The RPC's context.
            outbox: An empty outbox.
            pulse: Sent after PULSE_SECONDS without output; None to send nothing.
        """
        sending = Holding(self._registry.sending)
        try:
            with self._registry.call():
                error = await self._deliver(request, _Writer(context, sending), outbox, pulse)
            if error is not None:
                # gRPC has no way to drop a message that was handed to it. The status follows when
                # the caller has read it, and until then, or until it leaves, this waits.
                await abort(context, error)
        finally:
            sending.close()

    async def _deliver(
        self,
        request: Request,
        writer: _Writer,
        outbox: Outbox | MessageOutbox,
        pulse: GenerateImageResponse | None,
    ) -> InferenceError | None:
        """Runs the request, and writes its output; returns its error.

        The engine does not wait for a slow caller. If the caller leaves or stops reading, the
        engine's work for it is cancelled.
        """
        call = rpc_context(writer.context, request.request_id)
        filled = asyncio.Event()
        outbox.on_filled = lambda _size: filled.set()
        work = asyncio.create_task(run(self._registry, request, call, outbox))
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
                self._registry.metrics.aborts.observe(time.monotonic() - cancelled)
        return work.result()


class _Writer:
    """Writes the messages of one call.

    Args:
        context: The RPC's context.
        sending: What gRPC holds of the call's output.
    """

    def __init__(self, context: ServicerContext, sending: Holding) -> None:
        self.context = context
        self._sending = sending
        self._begun = False

    async def write(self, message: Part, holding: Holding) -> None:
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
            # On their own: if a write that is given up had sent them, gRPC would send them again
            # with the status, and fail.
            await self.context.send_initial_metadata(())
            self._begun = True
        try:
            async with asyncio.timeout(STALL_SECONDS) as stall:
                holding.blocked(partial(stall.reschedule, 0))
                await self.context.write(message)
                holding.unblocked()
        except TimeoutError as error:
            if not stall.expired():
                raise
            raise InferenceError(
                "slow_reader", "The caller does not read its answer fast enough."
            ) from error
        self._sending.release()
