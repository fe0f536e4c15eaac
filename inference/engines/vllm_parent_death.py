"""Ends vLLM's processes when their parent dies, which vLLM itself does not do.

vLLM calls `die_with_parent` in each of its processes, because pyproject.toml lists it among the
entry points "vllm.general_plugins". Without it a `kill -9` of an inference process would leave an
engine core behind that holds its memory for ever. This module imports the standard library only.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Final

# Number of the prctl option, from linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Registers for SIGKILL when the parent ends; exits if it has ended already.

    Outside Linux it only checks once. The kernel sends the signal when the *thread* that started
    this process ends, so the parent must start it from a thread that lives as long as the engine.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # With a fork server, getppid() is the server, whose end does not mean that the parent ended.
    if sys.platform == "linux" and os.getppid() == parent.pid:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # If the parent died before prctl, the kernel sends no signal.
    if not parent.is_alive():
        os._exit(1)
