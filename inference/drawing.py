"""One request for pictures, from its limits to the last picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

from inference.errors import InferenceError
from inference.generation import admission_head, timings
from inference.limits import check_image
from inference.registry import Registry
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse

# Who does not read for this long is gone; the pipeline is not kept from others for them.
STALL_SECONDS: Final = 30.0
# Between signs of life while the engine has nothing to say.
PULSE_SECONDS: Final = 5.0

Write = Callable[[GenerateImageResponse], Awaitable[None]]


async def draw(
    registry: Registry, request: GenerateImageRequest, principal: str, write: Write
) -> None:
    """Writes admitted, then what the engine yields; cancelling it stops the engine's work.

    The engine works ahead of a caller that reads slowly, and is free for others when it is done.

    Args:
        registry: Where the model is.
        request: From any caller.
        principal: Whose allowance is used.
        write: Returns when the transport has taken the message.

    Raises:
        InferenceError: The request is refused or has failed.
        EngineDeadError: The engine is lost.
    """
    parts: asyncio.Queue[GenerateImageResponse | None] = asyncio.Queue()
    work = asyncio.create_task(_work(registry, request, principal, parts.put_nowait))

    def end(work: asyncio.Task[None]) -> None:
        parts.put_nowait(None)
        if not work.cancelled():
            work.exception()  # taken note of, also where nobody waits for it any more

    work.add_done_callback(end)
    try:
        while (part := await _next(parts)) is not None:
            await _write(write, part)
    finally:
        work.cancel()
        await asyncio.wait([work])
    await work


async def _next(parts: asyncio.Queue[GenerateImageResponse | None]) -> GenerateImageResponse | None:
    """The next part, or a sign of life."""
    try:
        async with asyncio.timeout(PULSE_SECONDS):
            return await parts.get()
    except TimeoutError:
        return GenerateImageResponse()


async def _work(
    registry: Registry,
    request: GenerateImageRequest,
    principal: str,
    say: Callable[[GenerateImageResponse], None],
) -> None:
    arrived = time.monotonic()
    served, engine = registry.image(request.model)
    # First of all: nothing is done for a key that has nothing left, not even checks.
    served.rate_limiter.check(principal)
    check_image(request)
    async with served.admission.permit(1):
        with served.rate_limiter.charge(principal) as charge:
            prepared = await engine.prepare(request)
            charge.reserve(prepared.prompt_tokens)
            charge.used_tokens = prepared.prompt_tokens
            head = admission_head(served, request.model, prepared.prompt_tokens, charge)
            say(GenerateImageResponse(admitted=head))
            admitted = time.monotonic()
            first_output: float | None = None
            async with aclosing(engine.generate(prepared)) as events:
                async for event in events:
                    if first_output is None:
                        first_output = time.monotonic()
                    if event.HasField("usage"):
                        event.timings.CopyFrom(timings(arrived, admitted, first_output))
                    say(event)


async def _write(write: Write, message: GenerateImageResponse) -> None:
    try:
        async with asyncio.timeout(STALL_SECONDS) as stall:
            await write(message)
    except TimeoutError as error:
        if not stall.expired():
            raise
        raise InferenceError(
            "slow_reader", "The caller does not read its answer fast enough."
        ) from error
