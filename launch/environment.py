"""The environment variables of an inference process: settings of vLLM, torch and tokenizers.

All of them are defaults: a variable that the user has set keeps its value.
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
    "VLLM_NO_USAGE_STATS": "1",
    # Seconds that a worker has to exit; on two slow cores the default of 5 is just too short.
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "12",
    # vLLM must not fork: gRPC's threads would be missing in the child.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

# At a start their libraries write warnings that a user can do nothing about.
_ERRORS_ONLY: Final = {
    "GRPC_VERBOSITY": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-all",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def cpu_count() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the memory of this machine, or of its container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def inference_environment(
    model: ModelConfig, source: Path | None, base: Mapping[str, str], *, verbose: bool = False
) -> dict[str, str]:
    """Returns the environment of one model's process.

    Values of `base`, the user's environment, take precedence. `source` is the model's directory on
    this machine; None if it comes from a hub. Unless `verbose`, the libraries log errors only.
    """
    defaults = _QUIET if verbose else _QUIET | _ERRORS_ONLY
    # The tokenizers' thread pool deadlocks after a fork; the engines tokenize on their own threads.
    defaults = {**defaults, "TOKENIZERS_PARALLELISM": "false"}
    if source is not None:
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if model.engine == "vllm":
        # For vLLM's CPU build, in whole GiB: it would take most of the memory, not an eighth of it.
        # The number of its threads is chosen by inference/engines/cpu_plan.py.
        gib = min(16, max(1, memory_bytes() // 8 // _GIB))
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(gib)
    elif model.engine == "diffusers":
        # Images use all cores because they are rare and slow; idle threads sleep, not spin.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        # Embeddings use half of the cores, so that they leave the other half to the text model.
        defaults["OMP_NUM_THREADS"] = str(max(1, cpu_count() // 2))
        # Threads that spin while they wait take many times the CPU beside other work.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    return {**defaults, **base}
