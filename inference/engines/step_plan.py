"""How many tokens a step of vLLM takes, so that a long prompt does not hold up short ones.

A request waits for the step under way, so a step may not last long: about half a second on a CPU
and 100 ms on a GPU with an empty context, and less than twice that with a long one. How many tokens
that is depends on machine and model, and is measured at the start. Of a step that several requests
share, a long prompt gets its share of the requests, and at least a quarter: with less, one long
prompt beside many short answers would need four times as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# Seconds that a full step may take on an empty context.
CPU_STEP_SECONDS: Final = 0.5
GPU_STEP_SECONDS: Final = 0.1
# Fewer tokens cost as much: a step reads all weights, and has a cost of its own.
_LEAST_TOKENS: Final = 128
_LONG_PROMPT_SHARE: Final = 4


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Tokens of one step, and those of one prompt in a step that other requests share; 0: all."""

    step_tokens: int
    long_prompt_tokens: int


def plan_steps(
    token_seconds: float,
    step_seconds: float,
    *,
    most: int,
    running: int,
    given: Mapping[str, Any],
) -> StepPlan | None:
    """Chooses the steps.

    Args:
        token_seconds: Seconds for one token of a prompt, as measured.
        step_seconds: Seconds that a step may take.
        most: Tokens of a step for which vLLM has room.
        running: Requests that may run at once, each of which needs a token of a step.
        given: The configuration's engine arguments. A size that they set is kept.

    Returns:
        None if the configuration sets all sizes, or prompts are not computed in parts.
    """
    sizes = ("max_num_batched_tokens", "long_prefill_token_threshold")
    if given.get("enable_chunked_prefill") is False or all(name in given for name in sizes):
        return None
    tokens = most
    if sizes[0] not in given and token_seconds > 0:
        # A power of two, so that the noise of a measurement seldom changes it.
        affordable = max(int(step_seconds / token_seconds), 1)
        tokens = min(most, max(_LEAST_TOKENS, running, 1 << (affordable.bit_length() - 1)))
    return StepPlan(tokens, given.get(sizes[1], max(1, tokens // _LONG_PROMPT_SHARE)))
