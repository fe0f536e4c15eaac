"""One bound for the bytes that all requests of a process hold: bodies, prompts, unsent output.

Each request has a `Holding`, which counts in the process's `MemoryBudget`:

  what                          the process may then hold    otherwise
  ----------------------------  ---------------------------  ---------------------------------
  a request above SMALL_BYTES   LARGE_REQUESTS_SHARE of the  it is refused
                                budget
  a smaller request             the budget                   it is refused
  output of a running request   the budget                   readers that have taken nothing for
                                                             BLOCKED_SECONDS are cut, the slowest
                                                             first; then the request fails

So large requests leave room for the responses of those that run. A part of the budget can be set
aside for what outlives requests; the share is then one of the rest. Counted are the bytes of the
contents, each once; what Python and the libraries need for their copies is not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

# Requests and outputs up to this size are small: the number of connections and permits bounds them.
SMALL_BYTES: Final = 64 * 1024
LARGE_REQUESTS_SHARE: Final = 0.5
# Seconds without progress after which a reader may be cut.
BLOCKED_SECONDS: Final = 1.0

_MIB: Final = 1024 * 1024
# A process's budget, unless it is configured: a part of the machine's memory, within bounds.
_PART_OF_MACHINE: Final = 16
_LEAST_BYTES: Final = 256 * _MIB
_MOST_BYTES: Final = 4096 * _MIB
# Memory limits of this process's control group (versions 2 and 1), as containers see them.
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_Error = TypeVar("_Error", bound=BaseException)


class MemorySpentError(Exception):
    """The budget has no room for what a request wants to hold."""


class MemoryBudget:
    """Bounds and counts the bytes that all requests of a process hold.

    Attributes:
        limit: Bytes.
        used: Bytes that are held now, with those that are set aside.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._aside = 0
        # Holdings whose reader takes nothing, the longest wait first.
        self._blocked: dict[Holding, None] = {}

    def __repr__(self) -> str:
        return f"<MemoryBudget {self.used}/{self.limit} bytes>"

    def has_room(self, size: int, held: int = 0) -> bool:
        """Whether there is room for a new request, or for more of one that holds some already."""
        share = LARGE_REQUESTS_SHARE if held + size > SMALL_BYTES else 1
        return self.used + size - self._aside <= (self.limit - self._aside) * share

    def set_aside(self, size: int) -> None:
        """Counts bytes that are no request's, or returns them if `size` is negative."""
        self.used += size
        self._aside += size

    def _make_room(self) -> None:
        since = time.monotonic() - BLOCKED_SECONDS
        while self.used > self.limit and self._blocked:
            slowest = next(iter(self._blocked))
            if slowest._blocked_at > since:
                return
            slowest._cut_off()


UNBOUNDED: Final = MemoryBudget(sys.maxsize)
"""For holdings that bound nothing."""


class Holding:
    """The bytes that one request, or the buffer of one connection, holds of a budget."""

    __slots__ = ("_blocked_at", "_budget", "_closed", "_cut", "size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._closed = False
        self._blocked_at = 0.0
        self._cut: Callable[[], None] | None = None
        self.size = 0

    def take(self, size: int) -> None:
        """Counts bytes of a new request.

        Raises:
            MemorySpentError: There is no room for them; they are not counted.
        """
        budget = self._budget
        if not budget.has_room(size, self.size):
            raise MemorySpentError
        if not self._closed:
            self.size += size
            budget.used += size

    def add(self, size: int) -> None:
        """Counts bytes of output, and cuts the slowest readers if there is no room for them.

        Raises:
            MemorySpentError: There is still no room; they are not counted.
        """
        self.count(size)
        budget = self._budget
        if budget.used > budget.limit:
            budget._make_room()
            if budget.used > budget.limit and not self._closed:
                self.count(-size)
                raise MemorySpentError

    def count(self, size: int) -> None:
        """Counts bytes, or returns them if `size` is negative, without a check."""
        if not self._closed:
            self.size += size
            self._budget.used += size

    def release(self) -> None:
        """Returns everything; the holding can be used again."""
        self._budget.used -= self.size
        self.size = 0

    def close(self) -> None:
        """Returns everything; later calls count nothing."""
        self.release()
        if self._blocked_at:
            self.unblocked()
        self._closed = True

    def __del__(self) -> None:
        # A call that is cancelled before its handler runs has nobody who closes its holding.
        if self.size:
            self.release()

    def blocked(self, cut: Callable[[], None]) -> None:
        """Notes that from now on the reader takes nothing; `cut` is called to make room."""
        if self._closed:
            return
        self._blocked_at = time.monotonic()
        self._cut = cut
        self._budget._blocked[self] = None

    def unblocked(self) -> None:
        """Notes that the reader goes on."""
        self._budget._blocked.pop(self, None)

    def _cut_off(self) -> None:
        self.close()
        if self._cut is not None:
            self._cut()


def without_frames(error: _Error) -> _Error:
    """The same error without the frames that it passed.

    A frame that keeps its error is a cycle: request and output would stay in memory until the next
    garbage collection.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def default_budget() -> int:
    """Bytes for a process without a configured budget: 1/16 of the memory, 256 MiB to 4 GiB."""
    return min(max(machine_memory() // _PART_OF_MACHINE, _LEAST_BYTES), _MOST_BYTES)


def machine_memory() -> int:
    """Bytes of memory that this process can use: the machine's, or its container's if less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        try:
            memory = min(memory, int(path.read_text()))
        except (OSError, ValueError):  # There is none, or it is "max".
            continue
    return memory
