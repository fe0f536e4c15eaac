"""The time of the engine core's last step, with or without a token.

Outputs alone are not enough: a long prompt takes many steps before its first token, and an engine
that works on a prompt must not count as stuck.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class StepClock:
    """The time of the last step, updated by vLLM's statistics at every step.

    Attributes:
        last_step: Monotonic seconds of the last step, or of the last start of work after a rest.
    """

    def __init__(self) -> None:
        self.last_step = time.monotonic()

    def touch(self) -> None:
        """Records a step, or the start of work after a rest."""
        self.last_step = time.monotonic()

    def logger(self, *_: Any) -> StatLoggerBase:
        """Constructs a logger of statistics for vLLM; it only touches this clock."""
        return _StepLogger(self)


class _StepLogger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def record(self, *_: Any, **__: Any) -> None:
        self._clock.touch()

    def log_engine_initialized(self) -> None:
        """Does nothing; vLLM requires the method."""
