"""Metrics that every program has: build, memory budget, event loop, keys, and the process itself.

  isthmus_...                  labels           what
  ---------------------------  ---------------  ------------------------------------------------
  build_info                   version, python  1
  memory_used_bytes                             what all requests hold (memory.py)
  memory_limit_bytes                            what they may hold
  event_loop_lag_seconds                        how late the event loop runs a timer
  key_reloads_total            result           times that the keys file was read: ok, broken

process_* are prometheus-client's own: CPU seconds, memory, open files, start.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from contract.memory import MemoryBudget
from contract.metrics import SECONDS_BUCKETS, Histograms, counter, gauge, one

# Seconds between two looks at the event loop.
_LAG_SECONDS: Final = 0.25
_LOOKS_A_FOLD: Final = 4


class ProcessMetrics:
    """The metrics of this process.

    Args:
        memory: Its memory budget.
        key_reloads: How often the keys file was read, by result; empty without keys.
        histograms: Those of the program, to fold.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        key_reloads: Mapping[str, int],
        histograms: Iterable[Histograms],
    ) -> None:
        self._memory = memory
        self._key_reloads = key_reloads
        self._lag = Histograms(
            "isthmus_event_loop_lag_seconds",
            "How late the event loop runs a timer.",
            SECONDS_BUCKETS,
        )
        self._histograms = (self._lag, *histograms)
        # It is read from a file, which takes longer than all other families together.
        self._versions = metadata.version("isthmus"), platform.python_version()
        self._process = ProcessCollector(registry=CollectorRegistry())

    async def watch(self) -> None:
        """Measures the lag of the event loop, and folds the histograms, until it is cancelled."""
        lag, loop = self._lag.of(), asyncio.get_running_loop()
        while True:
            for _ in range(_LOOKS_A_FOLD):
                due = loop.time() + _LAG_SECONDS
                await asyncio.sleep(_LAG_SECONDS)
                lag.observe(max(loop.time() - due, 0.0))
            for histograms in self._histograms:
                histograms.fold()

    def collect(self) -> Iterator[Metric]:
        """All families as they are now."""
        yield gauge(
            "isthmus_build_info",
            "1, with the versions.",
            [(self._versions, 1)],
            ("version", "python"),
        )
        yield gauge("isthmus_memory_used_bytes", "What all requests hold.", one(self._memory.used))
        yield gauge(
            "isthmus_memory_limit_bytes", "What all requests may hold.", one(self._memory.limit)
        )
        yield self._lag.collect()
        yield counter(
            "isthmus_key_reloads",
            "Times that the keys file was read.",
            [((result,), count) for result, count in self._key_reloads.items()],
            ("result",),
        )
        yield from self._process.collect()
