"""Ends vLLM's processes when their parent dies; vLLM itself does nothing of the kind.

vLLM calls `die_with_parent` in each of its processes, because pyproject.toml names it among the
entry points "vllm.general_plugins". Without it a `kill -9` of an inference process would leave an
engine core behind that holds its memory for ever. Imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the parent ends; exits if it has ended already.

    Does nothing in a process that multiprocessing did not start, and nothing but the check
    outside Linux. The kernel sends the signal when the *thread* that started this process ends,
    so the parent must start it from a thread that lives as long as the engine.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # A fork server stands between the two: its end says nothing about the parent.
    if sys.platform == "linux" and os.getppid() == parent.pid:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before prctl; then no signal comes.
    if not parent.is_alive():
        os._exit(1)
