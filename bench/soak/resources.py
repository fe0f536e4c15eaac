"""Memory, open files and threads of the programs over time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psutil

_MIB: Final = 1024 * 1024
# The first share of a process's life, whose memory does not count: caches fill.
_WARM_UP: Final = 0.2
# Seconds after its start in which a process is not looked at: it still imports modules.
YOUNG_SECONDS: Final = 3.0
# A process has a slope if it lived for this share of the run.
_LONG_SHARE: Final = 0.3


@dataclass(frozen=True)
class Sample:
    """One look at a process.

    Attributes:
        at: Seconds of time.monotonic().
        rss: Resident memory, in bytes.
        files: Open file descriptors.
        threads: Threads.
    """

    at: float
    rss: int
    files: int
    threads: int


@dataclass
class Life:
    """A process from its first look to its last."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The time between the first and the last look."""
        return self.samples[-1].at - self.samples[0].at

    def row(self) -> dict[str, Any]:
        """The figures of the report."""
        slope = slope_mib_per_hour(self.samples)
        return {
            "name": self.name,
            "pid": self.pid,
            "seconds": round(self.seconds, 1),
            "rss_mib": [round(one.rss / _MIB, 1) for one in (self.samples[0], self.samples[-1])],
            "slope_mib_per_hour": None if slope is None else round(slope, 1),
            "start": asdict(self.samples[0]),
            "end": asdict(self.samples[-1]),
            "rss_series_mib": [round(one.rss / _MIB, 1) for one in self.samples],
        }


class Sampler:
    """Looks at processes and stores what it sees.

    Attributes:
        lives: Every process, by its id.
    """

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}

    def look(self, pids: Mapping[str, int | None]) -> None:
        """Takes a sample of each process that runs.

        Args:
            pids: The process of each program; None while it does not run.
        """
        for name, pid in pids.items():
            if pid is None:
                continue
            try:
                process = psutil.Process(pid)
                if time.time() - process.create_time() < YOUNG_SECONDS:
                    continue
                sample = Sample(
                    time.monotonic(),
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                )
            except psutil.Error:
                continue
            self.lives.setdefault(pid, Life(name, pid)).samples.append(sample)

    def long_lives(self, seconds: float) -> list[Life]:
        """Returns the processes that lived for a large part of a run of so many seconds."""
        return [life for life in self.lives.values() if life.seconds >= _LONG_SHARE * seconds]


def slope_mib_per_hour(samples: Sequence[Sample]) -> float | None:
    """Returns the growth after the warm-up, by least squares; None for too few samples."""
    if not samples:
        return None
    begin, end = samples[0].at, samples[-1].at
    warm = begin + _WARM_UP * (end - begin)
    points = [(sample.at / 3600, sample.rss / _MIB) for sample in samples if sample.at >= warm]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None
