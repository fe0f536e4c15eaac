"""What processes cost: CPU seconds and memory of a root and all its descendants; medians."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SHOWN_VERSIONS: Final = ("isthmus", "grpcio", "protobuf", "aiohttp", "uvloop", "orjson", "msgspec")


@dataclass(frozen=True)
class Memory:
    """Of a group of processes, in bytes.

    Attributes:
        rss: Resident pages; those that processes share count for each.
        pss: Resident pages, shared ones divided among those that share them.
    """

    rss: int
    pss: int


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of processes, their ended threads, descendants and ended children."""
    return sum(_process_seconds(process.pid) for process in _family(roots))


def memory(roots: Iterable[int]) -> Memory:
    """Memory of processes and their descendants."""
    rss = pss = 0
    for process in _family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            full = process.memory_full_info()
            rss += full.rss
            pss += full.pss
    return Memory(rss, pss)


def alive(groups: Mapping[str, Iterable[int]]) -> bool:
    """Whether every root of every group still runs."""
    return all(_runs(pid) for roots in groups.values() for pid in roots)


def median(values: Iterable[float]) -> float | None:
    """The median, None of nothing."""
    known = list(values)
    return statistics.median(known) if known else None


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _SHOWN_VERSIONS},
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _runs(pid: int) -> bool:
    try:
        # One that has ended is a zombie until its parent, this process, asks for its status.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _family(roots: Iterable[int]) -> list[psutil.Process]:
    family: dict[int, psutil.Process] = {}
    for pid in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                family[process.pid] = process
    return list(family.values())


def _process_seconds(pid: int) -> float:
    try:
        # The process's own clock of Linux, in nanoseconds: /proc counts in ticks of 10 ms.
        own = time.clock_gettime((~pid << 3) | 2)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    ended_children = (int(stat[13]) + int(stat[14])) / _TICKS_PER_SECOND
    return own + ended_children
