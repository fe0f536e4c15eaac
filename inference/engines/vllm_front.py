"""vLLM's engine as one of several fronts has it: the engine core is that of another process.

A client of vLLM waits for the message that the engine core is ready, which the engine core sends
only once; a front that is started again would wait for ever. So each front gets the message from
the process that keeps the engine core (vllm_core.py), and sends it to its own client.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import zmq
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from inference.config import ModelConfig
from inference.engines.base import EngineDeadError, EngineHealth, Report
from inference.engines.engine_board import EngineBoard
from inference.engines.front_link import FrontLink, join
from inference.engines.vllm_core import addresses
from inference.engines.vllm_engine import VllmEngine
from inference.engines.vllm_progress import StepClock
from inference.engines.vllm_steps import RunPrompt, take_steps
from inference.fronts import Front, engine_socket

# The name of the engine core among the connections of its clients.
_CORE: Final = (0).to_bytes(2, "little")
# Seconds for an answer of the engine core, which connects ten times a second.
_ANSWER_SECONDS: Final = 0.5


class FrontClock(StepClock):
    """The steps of an engine core that other fronts use as well."""

    def __init__(self, board: EngineBoard) -> None:
        self._board = board
        super().__init__()

    def record(self, scheduler_stats: Any = None, *others: Any, **more: Any) -> None:
        super().record(scheduler_stats, *others, **more)
        if others or more:  # By vLLM, and not at the start of work.
            self._board.step(self.last_step)
        if scheduler_stats is not None:
            self._board.tell(scheduler_stats.num_waiting_reqs, scheduler_stats.kv_cache_usage)

    @property
    def prefilling(self) -> int:
        """Prompt tokens of this front's calls that have no output yet."""
        return self._board.prefilling

    @prefilling.setter
    def prefilling(self, tokens: int) -> None:
        self._board.prefilling = tokens

    def slow_step_seconds(self) -> float:
        return self.slow_seconds(self._board.all_prefilling)


class VllmFront(VllmEngine):
    """An engine that starts once its engine core runs, and is dead once that has ended."""

    def __init__(self, config: ModelConfig, front: Front) -> None:
        super().__init__(config)
        self._front = front
        self._board = EngineBoard(front.folder / "board", front.index, front.count)
        self.clock = FrontClock(self._board)
        self._link: FrontLink | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, report: Report) -> None:
        """Waits for the engine core, and connects to it.

        Raises:
            ConfigError: As VllmEngine.
            EngineDeadError: The engine core ended meanwhile.
        """
        report("waiting for the engine")
        link = self._link = await join(engine_socket(self._front.folder), self._front.index)
        watch = self._watch = asyncio.create_task(self._end_with(link))
        start = asyncio.ensure_future(super().start(report))
        try:
            await asyncio.wait({start, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                raise EngineDeadError("the engine ended during the start")
            await start
        finally:
            start.cancel()

    async def _end_with(self, link: FrontLink) -> None:
        await link.ended()
        if self._engine is not None:
            # vLLM does the same when it notices the end: all calls fail.
            self._engine.engine_core.shutdown()

    def _make(self, arguments: AsyncEngineArgs, context: UsageContext) -> AsyncLLM:
        if self._link is None:
            raise EngineDeadError("not connected")
        arguments._api_process_count = self._front.count
        arguments._api_process_rank = self._front.index
        config = arguments.create_engine_config(context)
        start = f"ipc://{self._front.folder}/start-{self._front.index}"
        given, output = addresses(self._front.folder, self._front.index)
        with zmq.Context() as zeromq, zeromq.socket(zmq.DEALER) as core:
            core.setsockopt(zmq.LINGER, 0)
            core.setsockopt(zmq.IDENTITY, _CORE)
            core.connect(start)
            core.send(self._link.ready)
            engine = AsyncLLM.from_vllm_config(
                config,
                usage_context=context,
                stat_loggers=self.clock.stat_loggers(export=self.exports_metrics),
                disable_log_stats=arguments.disable_log_stats,
                client_addresses={"input_address": start, "output_address": output},
                client_count=self._front.count,
                client_index=self._front.index,
            )
        # Now the engine core itself may connect, under the same name.
        socket = engine.engine_core.input_socket
        socket.unbind(start)
        Path(start.removeprefix("ipc://")).unlink(missing_ok=True)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(given)
        return engine

    async def _connected(self, engine: AsyncLLM) -> None:
        """Waits for the engine core: what is sent before it has connected is lost."""
        while True:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await engine.get_supported_tasks()
                return
            except TimeoutError:
                continue

    async def _bound_steps(self, engine: AsyncLLM, run: RunPrompt, report: Report) -> None:
        """The first front measures, once for each engine core: a busy one is slower."""
        if not await take_steps(engine, self.clock, wait=self._front.index > 0):
            await super()._bound_steps(engine, run, report)

    def health(self) -> EngineHealth:
        """The health of VllmEngine, with the newest step that vLLM reported to any front."""
        health = super().health()
        board = self._board
        board.running = health.running
        age = min(health.last_step_age_seconds, time.monotonic() - board.last_step)
        cache = health.kv_cache
        if cache is not None:
            cache.usage = board.cache
        return replace(
            health,
            alive=health.alive and not (self._watch is not None and self._watch.done()),
            last_step_age_seconds=max(age, 0.0),
            waiting=board.waiting,
        )

    async def close(self) -> None:
        """Closes the engine as VllmEngine does, but leaves the engine core running."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await super().close()
        finally:
            if self._link is not None:
                self._link.close()
