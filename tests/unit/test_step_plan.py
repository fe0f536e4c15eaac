"""How many tokens of prompts a step of vLLM takes."""

from __future__ import annotations

from typing import Any

import pytest

from inference.engines.step_plan import (
    CPU_STEP_SECONDS,
    GPU_STEP_SECONDS,
    StepPlan,
    plan_steps,
)


def planned(
    tokens_a_second: float,
    step_seconds: float,
    most: int = 2048,
    running: int = 32,
    **given: Any,
) -> StepPlan | None:
    return plan_steps(1 / tokens_a_second, step_seconds, most=most, running=running, given=given)


@pytest.mark.parametrize(
    ("tokens_a_second", "step_tokens"),
    [
        (50, 128),  # Not less: a step has a cost of its own.
        (300, 128),
        (520, 256),
        (1_500, 512),
        (4_000, 1024),
        (100_000, 2048),  # Not more than vLLM has room for.
    ],
)
def test_step_on_a_cpu_takes_half_a_second_or_less(
    tokens_a_second: float, step_tokens: int
) -> None:
    assert planned(tokens_a_second, CPU_STEP_SECONDS) == StepPlan(step_tokens, step_tokens // 4)


@pytest.mark.parametrize(
    ("tokens_a_second", "step_tokens"),
    [(3_000, 256), (12_000, 1024), (45_000, 4096), (200_000, 8192)],
)
def test_step_on_a_gpu_takes_a_tenth_of_a_second(tokens_a_second: float, step_tokens: int) -> None:
    made = planned(tokens_a_second, GPU_STEP_SECONDS, most=8192, running=256)
    assert made == StepPlan(step_tokens, step_tokens // 4)


def test_every_running_request_gets_a_token_of_each_step() -> None:
    assert planned(100, GPU_STEP_SECONDS, most=8192, running=1000) == StepPlan(1000, 250)


def test_sizes_of_the_configuration_are_kept() -> None:
    assert planned(1_500, 0.5, most=1024, max_num_batched_tokens=1024) == StepPlan(1024, 256)
    assert planned(1_500, 0.5, long_prefill_token_threshold=77) == StepPlan(512, 77)
    assert planned(1_500, 0.5, long_prefill_token_threshold=0) == StepPlan(512, 0)
    both = {"max_num_batched_tokens": 1024, "long_prefill_token_threshold": 0}
    assert planned(1_500, 0.5, **both) is None
    assert planned(1_500, 0.5, enable_chunked_prefill=False) is None


def test_without_a_measurement_only_the_share_of_a_long_prompt_is_set() -> None:
    assert plan_steps(0.0, 0.1, most=8192, running=256, given={}) == StepPlan(8192, 2048)
