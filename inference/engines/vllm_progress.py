"""What vLLM's engine core does: its last step, how long one may take, what waits, its KV cache.

Outputs alone are not enough: a long prompt takes many steps before its first token. vLLM calls a
stat logger after every step, with or without output. How long a step takes depends on the prompt
tokens in it, so the bound grows with those that wait, at the speed that was measured at the start.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final, Self

from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

from inference.engines.base import SLOW_STEP_SECONDS
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import KvCache

# A step counts as stuck after this many times the time that its prompt tokens took at the start,
# if that is longer than SLOW_STEP_SECONDS. It covers long contexts and a busy machine.
_STEP_MARGIN: Final = 20.0
# Tokens of the prompts that are timed at the start on a CPU; on a GPU a short prompt takes as long
# as one that fills a step. Two prompts: the first of a size is slower, and other work only adds.
_TIMED_TOKENS: Final = 256
_TIMED_PROMPTS: Final = 2


class StepClock(StatLoggerBase):  # type: ignore[misc]
    """vLLM calls `record` after each step; the start of work after an idle time counts as one, too.

    Attributes:
        waiting: Requests that wait in the engine core.
        kv_cache: The KV cache, since `measure`.
        last_step: Seconds of the monotonic clock.
        token_seconds: Seconds for one prompt token.
        step_tokens: The most prompt tokens of one step.
        prefilling: Prompt tokens of all calls that have no output yet.
        generated_tokens: Tokens that were generated since the start.
    """

    def __init__(self) -> None:
        self.token_seconds = 0.0
        self.step_tokens = 0
        self.prefilling = 0
        self.generated_tokens = 0
        self.waiting = 0
        self.kv_cache: KvCache | None = None
        self.record()

    def record(self, scheduler_stats: Any = None, *_: Any, **__: Any) -> None:
        self.last_step = time.monotonic()
        if scheduler_stats is not None:
            self.waiting = scheduler_stats.num_waiting_reqs
            if self.kv_cache is not None:
                self.kv_cache.usage = scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """Does nothing; vLLM requires the method."""

    def call(self, engine: AsyncLLM, prompt_tokens: int) -> CallSteps:
        """A context that each call enters around its steps."""
        if engine.get_num_unfinished_requests() == 0:
            self.record()
        return CallSteps(self, prompt_tokens)

    def slow_step_seconds(self) -> float:
        """How long the step under way may take."""
        return self.slow_seconds(self.prefilling)

    def slow_seconds(self, prefilling: int) -> float:
        """How long a step may take while this many prompt tokens wait for their output."""
        tokens = min(prefilling, self.step_tokens)
        return max(SLOW_STEP_SECONDS, _STEP_MARGIN * self.token_seconds * tokens)

    def state(self) -> tuple[float, int, KvCache | None]:
        """The members of EngineHealth that the steps tell: slow_step_seconds and those after it."""
        return self.slow_step_seconds(), self.waiting, self.kv_cache

    def stat_loggers(self, *, export: bool) -> list[Any]:
        """The loggers that vLLM calls after each step: this, and Prometheus' if `export` is set."""
        return [lambda *_: self, *([PrometheusStatLogger] if export else [])]

    def measure(self, engine: AsyncLLM, token_seconds: float, step_tokens: int) -> None:
        """Takes the speed of the first prompts, and the size of vLLM's KV cache."""
        self.token_seconds = token_seconds
        self.step_tokens = step_tokens
        cache = engine.vllm_config.cache_config
        self.kv_cache = KvCache(block_size=cache.block_size or 0, blocks=cache.num_gpu_blocks or 0)


class CallSteps:
    """Counts the prompt of a call until its first output, and its tokens."""

    __slots__ = ("_clock", "_prompt_tokens")

    def __init__(self, clock: StepClock, prompt_tokens: int) -> None:
        self._clock = clock
        self._prompt_tokens = prompt_tokens

    def __enter__(self) -> Self:
        self._clock.prefilling += self._prompt_tokens
        return self

    def __exit__(self, *_: object) -> None:
        self.output(0)

    def output(self, tokens: int) -> None:
        """The call has this many more tokens."""
        self._clock.prefilling -= self._prompt_tokens
        self._prompt_tokens = 0
        self._clock.generated_tokens += tokens


def timed_requests(most: int, context_length: int, vocabulary_size: int) -> list[GenerateRequest]:
    """Prompts to time, each in one step of at most `most` tokens; nothing of them is cached."""
    tokens = _TIMED_TOKENS if current_platform.is_cpu() else most
    count = min(tokens, most, context_length - 1)
    requests = []
    for _ in range(_TIMED_PROMPTS):
        # A front that ended while it measured may have left the same tokens in the cache.
        request = GenerateRequest(cache_salt=uuid.uuid4().hex)
        request.token_ids.ids.extend(token % vocabulary_size for token in range(1, count + 1))
        request.stopping.max_tokens = 1
        requests.append(request)
    return requests
