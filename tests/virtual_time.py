"""An event loop whose clock jumps to the next timer as soon as nothing else can run.

So a test of a bound of 30 s takes no time, and the bound is exact. For code without real I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Begins at 1,000 s."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            timers = [t.when() for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
            if not timers:
                raise RuntimeError("nothing will ever happen: every task waits")
            self._now = max(self._now, min(timers))
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine to its end, in no time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def now() -> float:
    """Seconds of the running loop."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Lets everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)
