"""The watchdog of the event loop ends a stuck process, and none that was only frozen."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, time
from contract import process

process.STUCK_SECONDS, process._TICK_SECONDS = 1.0, 0.1

async def main():
    watchdog = asyncio.create_task(process.watch_event_loop())
    await asyncio.sleep(0.5)
    print("runs", flush=True)
    {then}
    await asyncio.sleep(0.5)
    watchdog.cancel()

asyncio.run(main())
"""


def started(then: str, count: int) -> list[subprocess.Popen[bytes]]:
    """So many children, which all run."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(then=then)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(count)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"
    return children


def test_stuck_event_loop_ends_the_process_with_its_traceback() -> None:
    (child,) = started("time.sleep(60)", 1)
    _, errors = child.communicate(timeout=50)
    assert child.returncode == 1
    assert b"in main" in errors


def test_process_that_was_frozen_for_longer_than_the_limit_goes_on() -> None:
    children = started("await asyncio.sleep(1)", 6)
    for child in children:
        child.send_signal(signal.SIGSTOP)
    time.sleep(3)
    for child in children:
        child.send_signal(signal.SIGCONT)
    for child in children:
        child.communicate(timeout=50)
    assert [child.returncode for child in children] == [0] * 6
