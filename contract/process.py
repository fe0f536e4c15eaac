"""How a server process of ours runs: its signals, its memory and a watchdog for its event loop."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import threading
from typing import Final

log = logging.getLogger(__name__)

# Arguments of gc.set_threshold. With Python's defaults the collector runs several times a second
# under load, and it hardly ever finds garbage.
GC_THRESHOLDS: Final = (10_000, 20, 50)
# Bytes of freed heap that glibc keeps for the process instead of returning them to the kernel.
_KEPT_HEAP_BYTES: Final = 16 * 1024 * 1024
# Blocks of this size and more come from the kernel, which gets them back at once. Smaller ones, as
# of the largest common response, a matrix of vectors, come from the heap.
_MAPPED_BYTES: Final = 512 * 1024
# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Seconds without a turn of the event loop after which the process is killed.
STUCK_SECONDS: Final = 120.0
# Seconds that Python has at the exit of a process to end its tasks and threads.
EXIT_SECONDS: Final = 5.0
# The same, if a library holds the GIL meanwhile.
_LOCKED_SECONDS: Final = 1200.0
# Seconds between two looks for a sign of life.
_TICK_SECONDS: Final = 5.0


def stop_event() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; a second signal cancels the calling task."""
    stop = asyncio.Event()
    # An exception out of the handler would end the loop in the middle of a turn; with CPython
    # 3.11 and uvloop, cancelling the tasks afterwards has crashed.
    task = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


def freeze_objects() -> None:
    """Lets later collections skip all present objects: those of the start live on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def keep_freed_heap() -> None:
    """Makes glibc keep `_KEPT_HEAP_BYTES` of freed heap.

    By default it returns freed memory at the end of the heap to the kernel at once, and each large
    response then gets it back page by page. Blocks of megabytes do not come from the heap: between
    others they would leave holes, and the process would grow to several times of what it uses.
    Other C libraries have no mallopt.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def end_soon(status: int) -> None:
    """Ends the process with this status after EXIT_SECONDS, if it has not ended by then.

    Python waits for all tasks and most threads at its exit, for ever if one is stuck: in a step of
    a GPU, or in a download.
    """

    def end() -> None:
        log.warning("tasks or threads did not end; ending the process with status %d", status)
        os._exit(status)

    timer = threading.Timer(EXIT_SECONDS, end)
    timer.daemon = True
    timer.start()


async def watch_event_loop() -> None:
    """Kills the process, with a traceback of each thread, when the event loop is stuck.

    A stuck loop answers no health check, and gRPC's own threads still answer pings. Runs until it
    is cancelled. Time in which the whole process is frozen (SIGSTOP, a paused container) does not
    count: a thread counts its own turns. It has none while a library holds Python's lock, so
    faulthandler's clock, which runs on in a freeze, ends the process after _LOCKED_SECONDS.
    """
    alive, ended = threading.Event(), threading.Event()

    def count() -> None:
        turns = 0
        while not ended.wait(_TICK_SECONDS):
            turns = 0 if alive.is_set() else turns + 1
            alive.clear()
            if turns * _TICK_SECONDS >= STUCK_SECONDS:
                faulthandler.dump_traceback()
                os._exit(1)

    threading.Thread(target=count, name="event loop watchdog", daemon=True).start()
    try:
        while True:
            alive.set()
            faulthandler.dump_traceback_later(_LOCKED_SECONDS, exit=True)
            await asyncio.sleep(_TICK_SECONDS / 2)
    finally:
        ended.set()
        faulthandler.cancel_dump_traceback_later()
