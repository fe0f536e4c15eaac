"""The environment of an inference process: what vLLM and torch read from it and nowhere else.

Everything here is a default: a variable that the user has set stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inference.config import ModelConfig

_GIB: Final = 1 << 30
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    # Never forked: gRPC's threads do not survive it.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of this machine, or of this container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def inference_environment(
    model: ModelConfig, source: Path | None, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment for the process that serves one model.

    Args:
        model: What it serves.
        source: The model's directory, where it is on this machine.
        base: The environment to begin with.
    """
    defaults = dict(_QUIET)
    # Forked tokenizer threads deadlock; the engines tokenize on threads of their own.
    defaults["TOKENIZERS_PARALLELISM"] = "false"
    if source is not None:
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if model.engine == "vllm":
        defaults |= _vllm_on_cpu()
    elif model.engine == "diffusers":
        # All cores, for pictures are rare and slow; waiting threads leave them to others.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        # Half of the cores: on a small machine the text model needs them more.
        defaults["OMP_NUM_THREADS"] = str(max(1, cpu_count() // 2))
    return {**defaults, **base}


def _vllm_on_cpu() -> dict[str, str]:
    """Settings that only vLLM's CPU build reads.

    Its threads are left to itself: one a physical core but one, bound. On two cores two unbound
    threads, which wait for each other by spinning, were slower the busier the machine.
    """
    # An eighth of the memory: unset, vLLM takes most of it. GiB, whole numbers only.
    return {"VLLM_CPU_KVCACHE_SPACE": str(min(16, max(1, memory_bytes() // 8 // _GIB)))}
