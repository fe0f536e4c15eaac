"""A file in which the fronts of an engine share its state.

vLLM tells the state of its engine core after each step, but only to one of its clients. Without the
others' news, a front whose long prompt makes no output yet would take the engine for stuck. The
file is an array of 64-bit numbers; each is written by itself, and nothing needs two of them to fit:

    0       monotonic nanoseconds of the last step
    1       requests that wait in the engine core
    2       used part of the KV cache, in millionths
    3 + 2i  requests of front i in the engine core
    4 + 2i  prompt tokens of front i's requests without output
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

_STEP, _WAITING, _CACHE, _FRONTS = range(4)
_BYTES: Final = 8
_MILLION: Final = 1_000_000


class EngineBoard:
    """The file, as one of its fronts reads and writes it.

    Args:
        path: The file, which is made if there is none.
        index: The front.
        count: The number of fronts.
    """

    def __init__(self, path: Path, index: int, count: int) -> None:
        size = (_FRONTS + 2 * count) * _BYTES
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            self._map = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._numbers = memoryview(self._map).cast("q")
        self._index = index
        # A killed front with this index may have left its counts.
        self.running = self.prefilling = 0

    def step(self, now: float) -> None:
        """Writes that the engine made a step, at a time in seconds of the monotonic clock."""
        self._numbers[_STEP] = int(now * 1e9)

    def tell(self, waiting: int, cache: float) -> None:
        """Writes how many requests wait, and which part of the KV cache is used."""
        self._numbers[_WAITING] = waiting
        self._numbers[_CACHE] = int(cache * _MILLION)

    @property
    def last_step(self) -> float:
        """Seconds of the monotonic clock; 0 before the first step."""
        return self._numbers[_STEP] / 1e9

    @property
    def cache(self) -> float:
        """The part of the KV cache that is used."""
        return self._numbers[_CACHE] / _MILLION

    @property
    def running(self) -> int:
        """Requests of this front in the engine core."""
        return self._numbers[_FRONTS + 2 * self._index]

    @running.setter
    def running(self, count: int) -> None:
        self._numbers[_FRONTS + 2 * self._index] = count

    @property
    def prefilling(self) -> int:
        """Prompt tokens of this front's requests that have no output yet."""
        return self._numbers[_FRONTS + 2 * self._index + 1]

    @prefilling.setter
    def prefilling(self, tokens: int) -> None:
        self._numbers[_FRONTS + 2 * self._index + 1] = tokens

    @property
    def all_prefilling(self) -> int:
        """Prompt tokens of all fronts' requests that have no output yet."""
        return sum(self._numbers[_FRONTS + 1 :: 2])

    @property
    def waiting(self) -> int:
        """This front's share of the requests that wait; the shares add up to all of them."""
        running = list(self._numbers[_FRONTS::2])
        if not (total := sum(running)):
            return 0
        before = sum(running[: self._index])
        after = before + running[self._index]
        waiting = min(self._numbers[_WAITING], total)
        return waiting * after // total - waiting * before // total
