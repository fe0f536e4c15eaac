"""Puts into vLLM what it has no setting for: constraints of output, measured steps, and the end
of a front.

vLLM calls `install` in each of its processes, because pyproject.toml lists it among the entry
points "vllm.general_plugins".
"""

from __future__ import annotations

import copy
import time
from importlib.metadata import entry_points
from typing import Any, Final

import vllm.envs

LIMIT_STEPS: Final = "isthmus_limit_steps"
"""The method of vLLM's engine core that is `limit_steps`."""

THREAD_SECONDS: Final = "isthmus_thread_seconds"
"""Its method that returns the CPU time of the thread which makes the steps, in seconds."""

MEASURED: Final = "isthmus_measured"
"""Its method that is `measured`."""

_NAME = "isthmus_structured_outputs"


def install() -> None:
    """Replaces vLLM's xgrammar backend and its check of grammars, and adds methods to the core."""
    from vllm.v1 import structured_output
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.structured_output import backend_xgrammar

    from inference.engines import vllm_grammars

    structured_output.XgrammarBackend = vllm_grammars.Grammars
    backend_xgrammar.validate_xgrammar_grammar = vllm_grammars.validate
    EngineCore.abort_client = abort_client
    setattr(EngineCore, LIMIT_STEPS, limit_steps)
    setattr(EngineCore, MEASURED, measured)
    setattr(EngineCore, THREAD_SECONDS, lambda _: time.thread_time())


def abort_client(core: Any, client_index: int) -> int:
    """Aborts all requests of a client in its engine core, and returns their number."""
    requests = core.scheduler.requests.values()
    ids = [request.request_id for request in requests if request.client_index == client_index]
    core.abort_requests(ids)
    return len(ids)


def limit_steps(core: Any, step_tokens: int, long_prompt_tokens: int) -> None:
    """Bounds the tokens of the engine core's steps from now on; arguments as in StepPlan.

    vLLM has settings for both, but only for its start, when nobody knows how long a step takes.
    """
    scheduler = core.scheduler
    # A copy, because the worker takes the sizes of its buffers from the original.
    config = copy.copy(scheduler.scheduler_config)
    if not config.long_prefill_token_threshold:
        # A threshold of the configuration keeps vLLM's meaning.
        scheduler.adaptive_long_prefill_threshold = True
    config.max_num_batched_tokens = min(step_tokens, config.max_num_batched_tokens)
    config.long_prefill_token_threshold = long_prompt_tokens
    scheduler.scheduler_config = config
    scheduler.max_num_scheduled_tokens = min(step_tokens, scheduler.max_num_scheduled_tokens)


def measured(core: Any, token_seconds: float = 0.0, step_tokens: int = 0) -> list[float]:
    """Keeps what was measured of an engine core if it is told, and returns what was kept.

    Several fronts start one after the other, and again while others work, but only a measurement of
    an idle engine is right.

    Returns:
        Seconds for a prompt token, and tokens of a step; empty before the first measurement.
    """
    if step_tokens:
        core.isthmus_speed = [token_seconds, step_tokens]
    kept: list[float] = getattr(core, "isthmus_speed", [])
    return kept


def is_installed() -> bool:
    """Whether vLLM's processes will call `install`."""
    allowed = vllm.envs.VLLM_PLUGINS
    found = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    return _NAME in found and (allowed is None or _NAME in allowed)
