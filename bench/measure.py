"""Measures CPU seconds and memory of processes with their descendants, and the machine."""

from __future__ import annotations

import base64
import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

ENGINE: Final = "engine"
"""The group to which cpu_seconds counts vLLM's engine processes."""

# Beginnings of the names of vLLM's processes: "VLLM::EngineCore", "VLLM::Worker".
_ENGINE_NAMES: Final = (b"VLLM::Engine", b"VLLM::Worker")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SHOWN_VERSIONS: Final = ("isthmus", "grpcio", "protobuf", "aiohttp", "uvloop", "orjson", "msgspec")
# Repetitions of each speed measurement, of which the fastest counts.
_TRIES: Final = 15


@dataclass(frozen=True)
class Memory:
    """Memory of a group of processes, in bytes.

    Attributes:
        rss: Resident pages; a shared page counts once for each process.
        pss: Resident pages; a shared page is divided among the processes that share it.
    """

    rss: int
    pss: int


def cpu_seconds(groups: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Returns the user and system time of each group of processes, in seconds.

    It includes descendants, ended threads and ended children. vLLM's engine processes do not count
    to their group but to a group of their own, ENGINE.

    Args:
        groups: The root processes of each group.
    """
    seconds = dict.fromkeys(groups, 0.0)
    for group, roots in groups.items():
        for process in _family(roots):
            counted = ENGINE if _is_engine(process.pid) else group
            seconds[counted] = seconds.get(counted, 0.0) + _process_seconds(process.pid)
    return seconds


def memory(roots: Iterable[int]) -> Memory:
    """Measures the memory of processes with their descendants."""
    rss = pss = 0
    for process in _family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            full = process.memory_full_info()
            rss += full.rss
            pss += full.pss
    return Memory(rss, pss)


def alive(groups: Mapping[str, Iterable[int]]) -> bool:
    """Reports whether every root of every group runs."""
    return all(_runs(pid) for roots in groups.values() for pid in roots)


def median(values: Iterable[float]) -> float | None:
    """Returns the median; None without values."""
    known = list(values)
    return statistics.median(known) if known else None


def machine() -> dict[str, Any]:
    """Describes the machine and the versions of the packages."""
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
        **speed(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def speed() -> dict[str, float]:
    """Measures the machine's speed, to compare figures that are not ratios.

    Returns:
        The shortest times of a Python loop of a million turns and of base64 of 1 MiB, in ms.
    """
    block = bytes(range(256)) * 4096

    def loop() -> None:
        total = 0
        for number in range(1_000_000):
            total += number * number % 7

    return {
        "loop_ms": _fastest_ms(loop),
        "base64_ms": _fastest_ms(lambda: base64.b64encode(block)),
    }


def _fastest_ms(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return 1000 * min(once() for _ in range(_TRIES))


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _runs(pid: int) -> bool:
    try:
        # An ended child of this process is a zombie until its status is read.
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


def _is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes().startswith(_ENGINE_NAMES)
    return False


def _process_seconds(pid: int) -> float:
    try:
        # Linux's CPU clock of the process counts nanoseconds; /proc counts ticks of 10 ms.
        own = time.clock_gettime((~pid << 3) | 2)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    ended_children = (int(stat[13]) + int(stat[14])) / _TICKS_PER_SECOND
    return own + ended_children
