"""Bounds the steps of a started vLLM by what they take on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from inference.config import ModelConfig
from inference.engines.base import Report
from inference.engines.step_plan import CPU_STEP_SECONDS, GPU_STEP_SECONDS, plan_steps
from inference.engines.vllm_arguments import one_process
from inference.engines.vllm_plugin import LIMIT_STEPS, MEASURED, THREAD_SECONDS
from inference.engines.vllm_progress import StepClock, timed_requests
from isthmus.v1.generate_pb2 import GenerateRequest

RunPrompt = Callable[[GenerateRequest], Awaitable[None]]

# Seconds between two questions whether the first front has measured.
_PAUSE: Final = 0.1


async def take_steps(engine: AsyncLLM, clock: StepClock, *, wait: bool) -> bool:
    """Gives the clock what a front has measured before.

    Args:
        engine: The front's client of the engine core.
        clock: The front's clock.
        wait: Whether another front measures now, or will.

    Returns:
        Whether there is a measurement; True if `wait`.
    """
    while not (told := await engine.engine_core.call_utility_async(MEASURED)):
        if not wait:
            return False
        await asyncio.sleep(_PAUSE)
    token_seconds, step_tokens = told
    clock.measure(engine, token_seconds, int(step_tokens))
    return True


async def bound_steps(
    engine: AsyncLLM,
    config: ModelConfig,
    clock: StepClock,
    run: RunPrompt,
    report: Report,
) -> None:
    """Times prompts, chooses the steps' sizes, and gives them to the engine core and the clock."""
    scheduler = engine.scheduler_config
    most = int(scheduler.max_num_batched_tokens)
    model = engine.model_config
    times = []
    for request in timed_requests(most, model.max_model_len, model.get_vocab_size()):
        began, computing = time.monotonic(), await _compute_seconds(engine, config)
        await run(request)
        computed = await _compute_seconds(engine, config) - computing
        tokens = len(request.token_ids.ids)
        times.append(((time.monotonic() - began) / tokens, computed / tokens))
    took, computed = (min(seconds) for seconds in zip(*times, strict=True))
    step_tokens = most
    plan = None
    if scheduler.enable_chunked_prefill:
        plan = plan_steps(
            computed,
            CPU_STEP_SECONDS if current_platform.is_cpu() else GPU_STEP_SECONDS,
            most=most,
            running=scheduler.max_num_seqs,
            given=config.engine_args,
        )
    core = engine.engine_core
    if plan is not None:
        step_tokens = plan.step_tokens
        await core.call_utility_async(LIMIT_STEPS, step_tokens, plan.long_prompt_tokens)
        report(
            f"{1 / computed:.0f} prompt tokens a second: steps of {step_tokens} tokens, "
            f"a long prompt takes {plan.long_prompt_tokens} or its share"
        )
    clock.measure(engine, took, step_tokens)
    await core.call_utility_async(MEASURED, took, step_tokens)


async def _compute_seconds(engine: AsyncLLM, config: ModelConfig) -> float:
    """Seconds of a clock that runs while the engine core computes.

    On a CPU it does not run while other programs have the core, so that a start on a busy machine
    measures what one on a quiet machine does.
    """
    if not one_process(config):
        return time.monotonic()
    return float(await engine.engine_core.call_utility_async(THREAD_SECONDS))
