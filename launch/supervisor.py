"""Keeps a set of programs running, and stops them in order.

A stop first ends the programs that accept requests (the edges), which drain them, and then the
others (the inference processes). Processes that outlast their time are killed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Final

from launch.child import Child, OnText, Program, Timing
from launch.parent_death import adopt_orphans

_TIMING: Final = Timing()
# Seconds beyond the drain in which an edge may send the ends of its responses.
_EDGE_CLOSING_SECONDS: Final = 3.0
# Seconds beyond the drain in which an engine may free its memory.
_CLOSING_SECONDS: Final = 10.0


class Supervisor:
    """Runs programs until a signal arrives or one of them cannot be started.

    Args:
        programs, timing, on_line, on_state: As in Child.
        drain_seconds: How long requests may go on after the first signal.
        on_ready, on_stopping: Called once all programs have been ready, and at the stop.
        closing_seconds: How long inference processes may run beyond the drain.
        starts_at_once: How many inference processes may load at the same time; None for any number.
            They start in the order of `programs`.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        drain_seconds: float,
        on_line: OnText,
        on_state: OnText,
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None] = lambda: None,
        timing: Timing = _TIMING,
        closing_seconds: float = _CLOSING_SECONDS,
        starts_at_once: int | None = None,
    ) -> None:
        self.children = [Child(program, timing, on_line, on_state) for program in programs]
        self._drain_seconds = drain_seconds
        self._closing_seconds = closing_seconds
        self._starts_at_once = starts_at_once or len(programs)
        self._on_ready = on_ready
        self._on_stopping = on_stopping
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def interrupt(self) -> None:
        """Begins a clean stop at the first call; kills everything at the second."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> int:
        """Runs the programs and stops them; raises CannotStartError if one was given up.

        Returns:
            0 after a clean stop, 1 if a child had to be killed, 130 after a second interrupt.
        """
        adopt_orphans()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.interrupt)
        turns = asyncio.create_task(self._take_turns())
        runs = {asyncio.create_task(child.run()): child for child in self.children}
        stop = asyncio.create_task(self._stop.wait())
        ready = asyncio.create_task(self._announce())
        status = 1
        try:
            await asyncio.wait({*runs, stop}, return_when=asyncio.FIRST_COMPLETED)
            turns.cancel()
            ready.cancel()
            self._on_stopping()
            for child in self.children:
                child.retire()
            status = await self._stop_all(runs)
            for run in runs:
                if run.done() and (error := run.exception()) is not None:
                    raise error
        finally:
            for child in self.children:
                child.kill()
            await asyncio.wait(runs)
            stop.cancel()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return status

    async def _take_turns(self) -> None:
        """Lets the edges start, and the others as soon as few enough of them are loading."""
        loading: set[asyncio.Task[bool]] = set()
        try:
            for child in sorted(self.children, key=lambda child: not child.program.stop_first):
                if not child.program.stop_first:
                    while len(loading) >= self._starts_at_once:
                        _, loading = await asyncio.wait(
                            loading, return_when=asyncio.FIRST_COMPLETED
                        )
                    loading.add(asyncio.create_task(child.ready.wait()))
                child.turn.set()
        finally:
            for task in loading:
                task.cancel()

    async def _announce(self) -> None:
        for child in self.children:
            await child.ready.wait()
        self._on_ready()

    async def _stop_all(self, runs: dict[asyncio.Task[None], Child]) -> int:
        """Ends the programs with `stop_first`, then the others; returns the exit status."""
        hurry = asyncio.create_task(self._hurry.wait())
        first = {run for run, child in runs.items() if child.program.stop_first}
        deadline = asyncio.get_running_loop().time() + self._drain_seconds
        clean = True
        try:
            for group, extra in (
                (first, _EDGE_CLOSING_SECONDS),
                (runs.keys() - first, self._closing_seconds),
            ):
                for run in group:
                    runs[run].terminate()
                clean &= await self._wait_for(group, hurry, deadline + extra)
                for run in group:
                    if not run.done():
                        runs[run].kill()
            return 130 if self._hurry.is_set() else 0 if clean else 1
        finally:
            hurry.cancel()

    async def _wait_for(
        self, group: set[asyncio.Task[None]], hurry: asyncio.Task[bool], deadline: float
    ) -> bool:
        """Waits until the children have ended; False at the deadline or if `hurry` is done."""
        loop = asyncio.get_running_loop()
        while waiting := {run for run in group if not run.done()}:
            left = deadline - loop.time()
            if left <= 0 or hurry.done():
                return False
            await asyncio.wait({*waiting, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return True
