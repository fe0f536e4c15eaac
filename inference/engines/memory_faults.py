"""Errors for a model that ran out of memory.

After a first fault only the request fails, and its caller may retry. A second fault within a minute
means that other objects occupy the memory, so the engine counts as dead. Faults of requests that
are larger than any before do not count: such a request may never fit, and clients repeat it.
"""

from __future__ import annotations

import gc
import time
import traceback
from typing import Final

from inference.engines.base import EngineDeadError
from inference.errors import InferenceError

# Seconds within which a second fault counts the engine as dead.
_WINDOW_SECONDS: Final = 60.0
# Milliseconds after which a caller may retry.
_RETRY_MS: Final = 5000


class MemoryFaults:
    """Remembers the time of an engine's last fault, and the largest size that fitted."""

    def __init__(self) -> None:
        self._last = -_WINDOW_SECONDS
        self._largest = 0

    def fitted(self, size: int) -> None:
        """Records work that needed no more memory than there is, in any unit."""
        self._largest = max(self._largest, size)

    def error(self, smaller: str, size: int = 0) -> InferenceError | EngineDeadError:
        """Records a fault and returns the exception for the request that ran out of memory.

        `smaller` completes "Please try again, or ask for ...". `size` is that of the work, in the
        unit of `fitted`.
        """
        if size <= self._largest:
            now = time.monotonic()
            again = now - self._last < _WINDOW_SECONDS
            self._last = now
            if again:
                return EngineDeadError("out of memory twice within a minute")
        return InferenceError(
            "out_of_memory",
            "The engine ran out of memory while it processed your request. Please try again, or "
            f"ask for {smaller}.",
            retry_after_ms=_RETRY_MS,
        )


def ran_out_of_memory(error: Exception) -> bool:
    """Whether the exception means that an allocation on a GPU or in main memory failed."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's CPU allocator and CUDA's own calls raise a plain RuntimeError.
    markers = ("DefaultCPUAllocator", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(marker in str(error) for marker in markers)


def release_memory(error: Exception | None = None) -> None:
    """Collects unreachable tensors and returns the GPU's unused cache to the device.

    The frames of an exception's traceback refer to tensors, so they are cleared first.
    """
    import torch

    if error is not None:
        traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()


def broke_the_device(error: Exception) -> bool:
    """Whether the GPU failed so that this process can no longer use it."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not ran_out_of_memory(error)
