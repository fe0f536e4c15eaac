"""The process of an engine that several fronts share: it has the engine, and no port of its own.

It loads the model and waits for its fronts (fronts.py). It ends with the engine, with status 1, and
with it all fronts, so that the launcher starts all of them again. At a stop it goes on until the
last front has left, or the engine has ended: fronts are stopped at the same time, and let their
calls finish.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

from contract import process
from inference.config import ModelConfig
from inference.engines import create_core
from inference.server import configured_tracing

log = logging.getLogger(__name__)

# Seconds beyond the drain in which fronts may end their sessions and close.
_LEAVING_SECONDS = 3.0


async def keep_until_stopped(
    config: ModelConfig, folder: Path, drain_seconds: float, otlp_endpoint: str | None
) -> int:
    """Runs the engine of a model for the fronts in a folder; a second signal cancels it.

    Returns:
        The exit status: 0 after SIGTERM or SIGINT, 1 after any other end.

    Raises:
        ConfigError: The model's arguments or files, or the endpoint, cannot be used.
    """
    stop = process.stop_event()
    core = create_core(config, folder, configured_tracing(otlp_endpoint))
    waits = [
        work := asyncio.create_task(core.run()),
        stopped := asyncio.create_task(stop.wait()),
        asyncio.create_task(process.watch_event_loop()),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            leaving = core.wait_left(drain_seconds + _LEAVING_SECONDS)
            waits.append(left := asyncio.create_task(leaving))
            await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
            return 0
        error = work.exception() if work.done() else None
        log.error("the engine has ended; so do its fronts", exc_info=error)
        return 1
    finally:
        for wait in waits:
            wait.cancel()
        await core.close()
        # Otherwise Python's exit goes through all of vLLM's objects for garbage, for seconds.
        gc.freeze()
