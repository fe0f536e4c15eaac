"""Ends a call whose engine makes no output for longer than the configuration allows."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final, Protocol

from inference.config import ModelConfig
from inference.engines.base import Request
from inference.errors import InferenceError
from isthmus.v1.generate_pb2 import GenerateRequest

# Longest time between two looks, in seconds; a limit may be exceeded by as much.
_CHECK_SECONDS: Final = 0.25


class Progress(Protocol):
    """Counts a call's outputs."""

    outputs: int


def arrives_at_once(request: Request) -> bool:
    """Whether a text is emitted at its end only, as the best of several candidates."""
    if not isinstance(request, GenerateRequest):
        return False
    return request.output.best_of > max(request.output.n, 1)


def stall_limit(
    config: ModelConfig, request: Request, progress: Progress
) -> AbstractAsyncContextManager[None]:
    """A context that bounds the time to the first output, and between two outputs.

    It bounds nothing if the configuration sets no limit, or none can hold. It raises
    InferenceError, deadline_exceeded.
    """
    first, gap = config.first_output_seconds, config.output_gap_seconds
    if (first is None and gap is None) or arrives_at_once(request):
        return nullcontext()
    return _limited(first, gap, progress)


@asynccontextmanager
async def _limited(
    first: float | None, gap: float | None, progress: Progress
) -> AsyncIterator[None]:
    """Bounds the seconds to the first output, and those between two outputs; None for no bound.

    One timer for the call looks at its count now and then: a timer, or the time, for each token
    would cost too much.

    Raises:
        InferenceError: deadline_exceeded.
    """
    loop = asyncio.get_running_loop()
    bound = asyncio.timeout(None)
    timer: asyncio.Handle | None = None
    seen, since = progress.outputs, time.monotonic()

    def check() -> None:
        nonlocal timer, seen, since
        now = time.monotonic()
        if progress.outputs != seen:
            seen, since = progress.outputs, now
        limit = gap if seen else first
        left = since + (math.inf if limit is None else limit) - now
        if left <= 0:
            bound.reschedule(loop.time())
        else:
            timer = loop.call_later(min(left, _CHECK_SECONDS), check)

    try:
        async with bound:
            check()
            yield
    except TimeoutError as error:
        if not bound.expired():
            raise
        raise InferenceError("deadline_exceeded", "The model made no output in time.") from error
    finally:
        if timer is not None:
            timer.cancel()
