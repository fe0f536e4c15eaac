"""vLLM's follower: the workers of one machine of a model whose head is another machine.

It does what `vllm serve --headless` does for a node of this kind. vLLM's own function has no way
to end it but a signal, and does not notice the end of the head.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any, Final

from msgspec.structs import replace
from vllm.usage.usage_lib import UsageContext
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from inference.config import ModelConfig
from inference.engines import vllm_arguments, vllm_network, vllm_plugin
from inference.engines.node_link import FollowerLink, Hello, join
from inference.engines.nodes import Nodes
from keys import ConfigError

log = logging.getLogger(__name__)

# Seconds that the workers have to end by themselves before they are killed.
_WORKER_SECONDS: Final = 3.0
# Seconds for all workers to end, those included that vLLM is about to start.
_CLOSE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1


class VllmFollower:
    """Node `rank` of a model.

    Raises:
        ConfigError: The engine arguments or the model's files are not acceptable, as for the head.
    """

    def __init__(self, config: ModelConfig, nodes: Nodes, rank: int) -> None:
        own = replace(config, engine_args={**config.engine_args, "node_rank": rank})
        self._arguments = vllm_arguments.engine_arguments(own)
        if not vllm_plugin.is_installed():
            raise ConfigError("vLLM does not find Isthmus's plugins; install Isthmus again")
        self._nodes = nodes
        self._hello = Hello(rank, vllm_arguments.shared_fingerprint(config))
        self._link: FollowerLink | None = None
        self._executor: MultiprocExecutor | None = None
        self._workers: asyncio.Future[str] | None = None
        self._closing = False
        # vLLM's processes end with the thread that started them (see vllm_parent_death).
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")

    async def run(self) -> None:
        """Waits for the head, and works for it until it or a worker of this machine has ended.

        Raises:
            JoinError: The head refuses this node, or did not come.
        """
        self._link = await join(self._nodes, self._hello)
        vllm_network.use_address(self._link.address)
        # This process has threads, which would be missing in a fork.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        log.info("starting vLLM and loading weights, data type %s", self._arguments.dtype)
        loop = asyncio.get_running_loop()
        workers = self._workers = loop.run_in_executor(self._thread, self._work)
        ended = asyncio.create_task(self._link.ended())
        either: set[asyncio.Future[Any]] = {workers, ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if workers.done():
            log.error("%s has ended; so does this process", workers.result())
        else:
            log.error("the head at %s has ended; so does this process", self._nodes.address)

    def _work(self) -> str:
        """Runs the workers; returns the name of the first that has ended."""
        config = self._arguments.create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER, headless=True
        )
        if self._closing:
            return "the start"
        executor = self._executor = MultiprocExecutor(config, monitor_workers=False)
        log.info("ready: has 1/%d of the model", config.parallel_config.nnodes)
        processes = {worker.proc.sentinel: worker.proc.name for worker in executor.workers}
        return str(processes[wait(list(processes))[0]])

    async def close(self) -> None:
        """Ends the connection, and with it the head, and the workers, with SIGKILL after 3 s."""
        self._closing = True
        if self._link is not None:
            self._link.close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        await asyncio.to_thread(_end_children)
        if self._workers is not None:
            # vLLM may be about to start them.
            while not self._workers.done() and time.monotonic() < deadline:
                await asyncio.wait({self._workers}, timeout=_POLL_SECONDS)
                await asyncio.to_thread(_end_children)
            if self._workers.done():
                self._workers.exception()  # Their end, as an error of their start.
        self._thread.shutdown(wait=False)


def _end_children() -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _WORKER_SECONDS
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()
        child.join()
