"""Runs a program that ends when its parent does, even when that is killed with SIGKILL.

    python -m launch.parent_death PARENT_PID PROGRAM ARGUMENT...

The kernel keeps the promise across exec, so any program can be run this way. It counts from the
thread that started it: that must be one that lives as long as the parent, such as its main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def main(argv: list[str]) -> None:
    """Replaces this process by the program; returns only by exiting."""
    parent, command = int(argv[0]), argv[1:]
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before prctl; then no signal comes.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- the point of this program


def adopt_orphans() -> None:
    """Makes descendants whose own parent has died children of this process, to be waited for."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    main(sys.argv[1:])
