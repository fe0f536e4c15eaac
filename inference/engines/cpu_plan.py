"""How vLLM uses the CPU at hand: its data type and its compute threads.

| CPU | data type |
|---|---|
| has instructions for bfloat16 (AVX512-BF16, AMX, ARM's BF16) | the model's own |
| has none, or cannot be read | float32: each operation would convert to it and back |

Threads: one for each physical core that this process may use but one, and no more than its
container has CPU time for. The last core is for the other processes: threads that share a step wait
for each other, so a step takes as long as that of them which was interrupted. `isthmus doctor`
shows the plan, so this file imports no engine.
"""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.config import ModelConfig

# Flags of x86 and of ARM CPUs with instructions for bfloat16, as people know them.
_BFLOAT16_FLAGS: Final = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "ARM BF16"}
_CPU_INFO: Final = Path("/proc/cpuinfo")
_TOPOLOGY: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The properties of a machine's CPU that determine the plan.

    Attributes:
        name: The model's name, or the architecture.
        flags: Names of its features, as in /proc/cpuinfo.
        cores: Physical cores that this process may use.
        quota: Cores' worth of CPU time that its container may use; None without a limit.
    """

    name: str
    flags: frozenset[str]
    cores: int
    quota: float | None = None


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The data type as vLLM spells it ("auto" is the model's own), why, and the threads."""

    dtype: str
    reason: str
    threads: int

    @property
    def data_type(self) -> str:
        """The data type in words."""
        dtype = "the model's data type" if self.dtype == "auto" else self.dtype
        return f"{dtype} ({self.reason})"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the processes that compute."""
        return {"OMP_NUM_THREADS": str(self.threads)}

    def __str__(self) -> str:
        return f"{self.data_type}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def plan(cpu: Cpu) -> CpuPlan:
    """Chooses for a CPU."""
    has = [name for flag, name in _BFLOAT16_FLAGS.items() if flag in cpu.flags]
    reason = has[0] if has else "no instructions for bfloat16"
    threads = cpu.cores - 1
    if cpu.quota is not None:
        threads = min(threads, math.floor(cpu.quota))
    return CpuPlan("auto" if has else "float32", reason, max(1, threads))


def plan_here(config: ModelConfig | None = None) -> CpuPlan:
    """The plan for this machine, with what the configuration and the environment set."""
    made = plan(this_cpu())
    dtype = config.engine_args.get("dtype") if config is not None else None
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return CpuPlan(
        str(dtype or made.dtype),
        "configured" if dtype else made.reason,
        int(threads) if threads.isdecimal() and int(threads) > 0 else made.threads,
    )


def this_cpu() -> Cpu:
    """Reads this machine's; what cannot be read is taken as absent."""
    text = _read(_CPU_INFO)
    return Cpu(
        name=_line(text, "model name") or platform.machine(),
        flags=frozenset((_line(text, "flags") or _line(text, "Features")).split()),
        cores=_physical_cores(),
        quota=quota(_read(_QUOTA)),
    )


def quota(text: str) -> float | None:
    """Cores' worth of CPU time from the text of cgroup's cpu.max, for example "200000 100000"."""
    found = re.match(r"(\d+) (\d+)", text)
    return int(found[1]) / int(found[2]) if found else None


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {
        _read(_TOPOLOGY / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number)
        for number in os.sched_getaffinity(0)
    }
    return len(cores)


def _line(cpu_info: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:(.*)$", cpu_info, re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
