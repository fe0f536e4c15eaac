"""When the engine core last took a step, whether or not the step made a token.

Outputs alone would not do: a long prompt is read in many steps before its first token, and an
engine that reads must not look like one that hangs.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class StepClock:
    """Told of every step by vLLM's statistics.

    Attributes:
        last_step: Monotonic seconds of the last step, or of the last time that work began.
    """

    def __init__(self) -> None:
        self.last_step = time.monotonic()

    def touch(self) -> None:
        """Notes that the engine moves, or has been given work after a rest."""
        self.last_step = time.monotonic()

    def logger(self, *_: Any) -> StatLoggerBase:
        """Makes the logger that vLLM asks for; it only touches this clock."""
        return _StepLogger(self)


class _StepLogger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def record(self, *_: Any, **__: Any) -> None:
        self._clock.touch()

    def log_engine_initialized(self) -> None:
        """Has nothing to say."""
