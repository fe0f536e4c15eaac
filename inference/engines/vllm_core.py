"""vLLM's engine core for several fronts: the process that starts it and keeps it.

It does what `vllm serve --api-server-count` does in its first process, and two things more. vLLM
ends everything if one of its servers ends; here a front may be started again, and what it has left
in the engine core is aborted. So this process is a client of the engine core as well, the last one:

* It receives the message that the engine core is ready, which the engine core sends only once.
* It calls `abort_client`, which vllm_plugin adds to the engine core.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from vllm.config import VllmConfig
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.utils import CoreEngineProcManager, EngineZmqAddresses, launch_core_engines
from vllm.v1.executor import Executor

from contract.tracing import Tracing
from inference.config import ModelConfig
from inference.engines import vllm_arguments, vllm_plugin
from inference.engines.front_link import EngineLink
from inference.fronts import engine_socket
from keys import ConfigError

log = logging.getLogger(__name__)

# Seconds until vLLM's processes are killed with SIGKILL.
_SHUTDOWN_SECONDS: Final = 16.0
# Seconds without an answer after which the engine core counts as dead. It answers between two
# steps; a front that takes it for stuck ends, and it is asked then (health.py).
_ANSWER_SECONDS: Final = 60.0


class _Client(AsyncMPClient):  # type: ignore[misc]
    """This process as a client of the engine core.

    Attributes:
        ready: The message of the engine core that it is ready.
    """

    ready = b""

    def _apply_ready_response(self, payload: bytes) -> None:
        self.ready = payload
        super()._apply_ready_response(payload)


class VllmCore:
    """The engine core of a model, for the fronts in a folder.

    Raises:
        ConfigError: The engine arguments or the model's files are not acceptable.
    """

    def __init__(self, config: ModelConfig, folder: Path, tracing: Tracing | None) -> None:
        self._arguments = vllm_arguments.engine_arguments(config, tracing)
        if not vllm_plugin.is_installed():
            raise ConfigError("vLLM does not find Isthmus's plugins; install Isthmus again")
        # Also makes vLLM keep images in the fronts only, and not in the engine core too.
        self._arguments._api_process_count = config.fronts
        self._arguments._api_process_rank = -1
        self._config = config
        self._folder = folder
        self._manager: CoreEngineProcManager | None = None
        self._client: _Client | None = None
        self._link: EngineLink | None = None
        self._ended = asyncio.Event()
        # vLLM's processes end with the thread that started them (see vllm_parent_death).
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")

    async def run(self) -> None:
        """Starts the engine core, and returns once it has ended, or answers no more."""
        # This process has threads, which would be missing in a fork.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        used = vllm_arguments.use_cpu(self._config, self._arguments)
        log.info("starting vLLM and loading weights, %s", used)
        loop = asyncio.get_running_loop()
        manager, client = await loop.run_in_executor(self._thread, self._launch)
        self._manager, self._client = manager, client
        for process in manager.processes:
            loop.add_reader(process.sentinel, self._ended.set)
        try:
            # Starts the task that takes the answers of the engine core.
            await self._release(0)
            self._link = EngineLink(self._config.fronts, client.ready, self._release)
            await self._link.open(engine_socket(self._folder))
            log.info("ready for %d fronts", self._config.fronts)
            await self._ended.wait()
        finally:
            for process in manager.processes:
                loop.remove_reader(process.sentinel)

    def _launch(self) -> tuple[CoreEngineProcManager, _Client]:
        config: VllmConfig = self._arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
        executor = Executor.get_class(config)
        count = self._config.fronts
        pairs = [addresses(self._folder, index) for index in range(count + 1)]
        ends = EngineZmqAddresses([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        # The path of a socket has at most 107 bytes, and TMPDIR, vLLM's choice, may be long.
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(self._folder))
        with launch_core_engines(config, executor, True, ends) as launch:
            manager = launch.engine_manager
        own = {"input_address": pairs[-1][0], "output_address": pairs[-1][1]}
        places = {"client_count": len(pairs), "client_index": count}
        return manager, _Client(config, executor, True, own, **places)

    async def _release(self, front: int) -> None:
        """Aborts the requests of a front."""
        if self._client is None:
            return
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                aborted: Any = await self._client.call_utility_async("abort_client", front)
        except TimeoutError:
            log.error("the engine core has not answered for %.0f s", _ANSWER_SECONDS)
            self._ended.set()
            return
        if aborted:
            log.info("aborted %d requests of front %d", aborted, front)

    async def wait_left(self, seconds: float) -> None:
        """Waits until no front is connected, for at most `seconds`."""
        if self._link is not None:
            await self._link.wait_left(seconds)

    async def close(self) -> None:
        """Ends all fronts and vLLM's processes, the latter with SIGKILL after 16 s."""
        if self._link is not None:
            self._link.close()
        manager, client = self._manager, self._client
        self._manager = self._client = None
        if client is not None:
            client.shutdown()
        if manager is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, manager.shutdown, _SHUTDOWN_SECONDS)
        # Without a manager the thread may still be starting one, which cannot be interrupted.
        self._thread.shutdown(wait=manager is not None)


def addresses(folder: Path, index: int) -> tuple[str, str]:
    """The addresses at which a client of the engine core listens, for input and for output."""
    return f"ipc://{folder}/core-in-{index}", f"ipc://{folder}/core-out-{index}"
