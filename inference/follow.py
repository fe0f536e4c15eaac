"""A follower: a process that has a part of a model, and neither a port nor requests of its own.

It waits for the head, loads its part, and ends with the head or with one of its workers, with
status 1, so that its supervisor starts it again. SIGTERM and SIGINT end it at once, and with it
the head: to stop a model without failed requests, stop the head first.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence

from contract import process
from inference.config import ModelConfig
from inference.engines import create_follower
from inference.engines.node_link import JoinError
from inference.engines.nodes import followed

log = logging.getLogger(__name__)


async def follow_until_stopped(models: Sequence[ModelConfig], rank: int) -> int:
    """Runs node `rank` of the model; a second signal cancels it.

    Returns:
        The exit status: 0 after SIGTERM or SIGINT, 1 after any other end.

    Raises:
        ConfigError: The model cannot be followed, or its arguments or files cannot be used.
    """
    stop = process.stop_event()
    config, nodes = followed(models, rank)
    follower = create_follower(config, nodes, rank)
    log.info("follower %d of %s", rank, config.id)
    waits = [
        work := asyncio.create_task(follower.run()),
        stopped := asyncio.create_task(stop.wait()),
        asyncio.create_task(process.watch_event_loop()),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return 0
        if work.done() and (error := work.exception()) is not None:
            expected = isinstance(error, JoinError)
            log.error("%s", error, exc_info=None if expected else error)
        return 1
    finally:
        for wait in waits:
            wait.cancel()
        await follower.close()
        # Otherwise Python's exit goes through all of vLLM's objects for garbage, for seconds.
        gc.freeze()
