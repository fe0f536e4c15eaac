"""Whether vLLM's engine core makes progress: the time of its last step, and how long one may take.

Outputs alone are not enough: a long prompt takes many steps before its first token. vLLM calls a
stat logger after every step, with or without output. How long a step takes depends on the prompt
tokens in it, so the bound grows with those that wait, at the speed that was measured at the start.
"""

from __future__ import annotations

import time
from typing import Any, Final

from vllm.v1.metrics.loggers import StatLoggerBase

from inference.engines.base import SLOW_STEP_SECONDS
from isthmus.v1.generate_pb2 import GenerateRequest

# A step counts as stuck after this many times the time that its prompt tokens took at the start,
# if that is longer than SLOW_STEP_SECONDS. It covers long contexts and a busy machine.
_STEP_MARGIN: Final = 20.0
# Tokens of the prompt that is timed at the start.
_TIMED_TOKENS: Final = 128


class StepClock(StatLoggerBase):  # type: ignore[misc]
    """vLLM calls `record` after each step; the start of work after an idle time counts as one, too.

    Attributes:
        last_step: Seconds of the monotonic clock.
        token_seconds: Seconds for one prompt token.
        step_tokens: The most prompt tokens of one step.
        prefilling: Prompt tokens of all calls that have no output yet.
    """

    def __init__(self) -> None:
        self.token_seconds = 0.0
        self.step_tokens = 0
        self.prefilling = 0
        self.record()

    def record(self, *_: Any, **__: Any) -> None:
        self.last_step = time.monotonic()

    def log_engine_initialized(self) -> None:
        """Does nothing; vLLM requires the method."""

    def slow_step_seconds(self) -> float:
        """How long the step under way may take."""
        tokens = min(self.prefilling, self.step_tokens)
        return max(SLOW_STEP_SECONDS, _STEP_MARGIN * self.token_seconds * tokens)


def timed_request(context_length: int, vocabulary_size: int) -> GenerateRequest:
    """A prompt to time; its tokens are all different, so that nothing of it is cached."""
    count = min(_TIMED_TOKENS, context_length - 1)
    quarter = vocabulary_size // 4
    request = GenerateRequest()
    request.token_ids.ids.extend(quarter + i * quarter // count for i in range(count))
    request.stopping.max_tokens = 1
    return request
