"""The pace of an engine, for token sources that run as scripts with the standard library only."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


class Steps:
    """The steps of an engine: each wakes all waiting responses at the same time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.paced = seconds > 0
        self._waiting: list[asyncio.Future[None]] = []
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def next(self) -> None:
        """Waits for the next step; without a pace, lets all other tasks run once."""
        if not self.paced:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._due = loop.time() + self._seconds
            self._timer = loop.call_at(self._due, self._step)
        future = loop.create_future()
        self._waiting.append(future)
        await future

    def _step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        # Without waiting responses there is no timer: an idle engine makes no steps.
        self._timer = None
        if waiting:
            loop = asyncio.get_running_loop()
            # A late step delays all later ones, as in an engine.
            self._due = max(self._due + self._seconds, loop.time())
            self._timer = loop.call_at(self._due, self._step)


def grouped(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    """Splits items into groups of `size`; the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


async def until_terminated() -> None:
    """Waits for SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
