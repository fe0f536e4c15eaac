"""Runs a program that the kernel kills when its parent ends, even if SIGKILL ended the parent.

    python -m launch.parent_death PARENT_PID PROGRAM ARGUMENT...

Linux keeps the setting (PR_SET_PDEATHSIG) across exec, so it works for any program. "Parent" means
the thread that started this process: it must live as long as the parent, as the main thread does.
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
    """Replaces this process by the program; never returns."""
    parent, command = int(argv[0]), argv[1:]
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that ended before prctl causes no signal.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- the point of this program


def adopt_orphans() -> None:
    """Makes this process the parent of orphaned descendants (Linux only)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    main(sys.argv[1:])
