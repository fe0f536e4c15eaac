"""vLLM's engine for a model over several machines, on the head; the others run vllm_follower.py."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from inference.config import ModelConfig
from inference.engines import vllm_arguments, vllm_network
from inference.engines.base import EngineDeadError, EngineHealth, Report
from inference.engines.node_link import HeadLink
from inference.engines.nodes import Nodes
from inference.engines.vllm_engine import VllmEngine

# Seconds until vLLM's processes are killed with SIGKILL when a follower has ended.
_LOST_SHUTDOWN_SECONDS: Final = 1.0


class VllmHead(VllmEngine):
    """An engine that starts once all followers are there, and is dead once one has ended."""

    def __init__(self, config: ModelConfig, nodes: Nodes) -> None:
        super().__init__(config)
        self._nodes = nodes
        self._link = HeadLink(config.id, nodes, vllm_arguments.shared_fingerprint(config))

    async def start(self, report: Report) -> None:
        """Waits for the followers, and loads this machine's part of the model.

        Raises:
            ConfigError: As VllmEngine, or the head's address is not one of this machine.
            JoinError: A follower did not come.
            EngineDeadError: A follower ended meanwhile.
        """
        # Checks the engine arguments before the wait for followers, which may take minutes.
        vllm_arguments.engine_arguments(self._config, self.tracing)
        await self._link.open()
        at = f"{self._nodes.address} port {self._nodes.port}"
        report(f"waiting at {at} for {self._link.missing} (isthmus inference --follow RANK)")
        await self._link.gather()
        vllm_network.use_address(self._link.address)
        start = asyncio.ensure_future(super().start(report))
        lost = asyncio.create_task(self._link.lost.wait())
        try:
            await asyncio.wait({start, lost}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise EngineDeadError("a follower ended during the start")
            await start
        finally:
            for task in (start, lost):
                task.cancel()

    def health(self) -> EngineHealth:
        health = super().health()
        return replace(health, alive=False) if self._link.lost.is_set() else health

    async def close(self) -> None:
        """Closes the engine as VllmEngine does, then the link, which ends the followers."""
        if self._link.lost.is_set():
            # The worker here would wait for that follower.
            self.shutdown_seconds = _LOST_SHUTDOWN_SECONDS
        try:
            await super().close()
        finally:
            await self._link.close()
