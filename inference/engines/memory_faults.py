"""What follows when a model runs out of memory: once is a refusal, twice is a dead process."""

from __future__ import annotations

import time
from typing import Final

from inference.engines.base import EngineDeadError
from inference.errors import InferenceError

# Memory that runs out again this soon will not come back by itself.
_WINDOW_SECONDS: Final = 60.0
_RETRY_MS: Final = 5000


class MemoryFaults:
    """Remembers when memory last ran out."""

    def __init__(self) -> None:
        self._last = -_WINDOW_SECONDS

    def error(self) -> InferenceError | EngineDeadError:
        """What the request that has just run out of memory ends with."""
        now = time.monotonic()
        again = now - self._last < _WINDOW_SECONDS
        self._last = now
        if again:
            return EngineDeadError("out of memory twice within a minute")
        return InferenceError(
            "out_of_memory",
            "The engine ran out of memory while it processed your request. Please try again, or "
            "ask for fewer or smaller pictures.",
            retry_after_ms=_RETRY_MS,
        )


def ran_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python failed to get memory, of a GPU or of the machine."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and CUDA's own calls raise nothing of their own.
    words = ("DefaultCPUAllocator", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def broke_the_device(error: Exception) -> bool:
    """Whether the GPU has failed, after which it does nothing more for this process."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not ran_out_of_memory(error)
