"""How long a step of vLLM may take before it counts as stuck."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines.vllm_progress import StepClock


@pytest.mark.parametrize(
    ("prefilling", "seconds"),
    [
        (0, 10.0),  # Only single tokens.
        (50, 10.0),  # 20 x 0.01 x 50 is less than the least bound, or as much.
        (100, 20.0),
        (256, 51.2),
        (7000, 51.2),  # A step takes at most 256 of them.
    ],
)
def test_step_with_a_long_prompt_may_take_longer(prefilling: int, seconds: float) -> None:
    clock = StepClock()
    clock.token_seconds, clock.step_tokens = 0.01, 256
    clock.prefilling = prefilling
    assert clock.slow_step_seconds() == pytest.approx(seconds)


def test_each_step_sets_the_clock() -> None:
    clock = StepClock()
    clock.last_step = 0.0
    clock.record(scheduler_stats=None, iteration_stats=None)
    assert clock.last_step > 0.0
