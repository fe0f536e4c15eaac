"""Shows how programs start: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import atexit
import os
import queue
import re
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any, Final, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

# Seconds between two plain lines of one state in which only numbers have changed.
_PLAIN_SECONDS: Final = 10.0
_NUMBERS: Final = re.compile(r"[\d.]+")
# Pieces of output that may wait for the reader of standard output, and the longest waits for it:
# after each piece, and at the exit.
_MAX_WAITING: Final = 1000
_PATIENCE_SECONDS: Final = 0.5
_LAST_SECONDS: Final = 2.0
# The prefix of our log lines: date, time, level, logger.
_LOG_PREFIX: Final = re.compile(r"^[\d-]+ [\d:,.]+ [A-Z]+ [\w.]+ ")


class _Output:
    """Standard output that may fail: its reader has left or reads nothing (Ctrl-S), its disk is
    full, or it has no such character.

    The reader of `isthmus up | tee log` leaves at the Ctrl-C that stops the programs in order, and
    an exception would end them at once instead. A write that waits would keep the supervisor from
    its programs, so a thread writes; what it has no room for is dropped, and counted.
    """

    def __init__(self) -> None:
        self._file = sys.stdout
        self._texts: queue.Queue[str] = queue.Queue(_MAX_WAITING)
        self._dropped = 0
        self._waits = True
        threading.Thread(target=self._write_all, name="output", daemon=True).start()
        atexit.register(self._wait, _LAST_SECONDS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        note = f"[{self._dropped} lines dropped]\n" if self._dropped else ""
        try:
            self._texts.put_nowait(note + text)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Waits until everything is written; not again while the reader reads nothing."""
        self._waits = self._wait(_PATIENCE_SECONDS if self._waits else 0.0)

    def _wait(self, seconds: float) -> bool:
        with self._texts.all_tasks_done:
            return self._texts.all_tasks_done.wait_for(
                lambda: not self._texts.unfinished_tasks, seconds
            )

    def _write_all(self) -> None:
        while True:
            text = self._texts.get()
            with suppress(OSError):
                self._write(text)
            self._texts.task_done()

    def _write(self, text: str) -> None:
        data = text.encode(self._file.encoding or "utf-8", "replace")
        try:
            number = self._file.fileno()
        except OSError:  # Not a file of the system.
            self._file.write(data.decode(self._file.encoding or "utf-8"))
            self._file.flush()
            return
        # os.write and not the object: Python waits at its exit for a thread that writes to it.
        while data:
            data = data[os.write(number, data) :]


class Display:
    """Shows the states and the output of programs; if verbose, their output at the start, too."""

    def __init__(self, *, verbose: bool = False) -> None:
        output = cast("IO[str]", _Output())
        self._console = Console(file=output, highlight=False, soft_wrap=True)
        self._rows: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._shown: dict[str, tuple[str, float]] = {}
        self._verbose = verbose
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=8
            )
            self._live.start()

    def state(self, name: str, text: str) -> None:
        """Shows a program's newest state; may be called often, with a number that changes."""
        self._began.setdefault(name, time.monotonic())
        self._rows[name] = text
        if self._live is None:
            self._plain(name, text)

    def line(self, name: str, text: str) -> None:
        """Shows a line of a program's output.

        In a terminal a line before the program is ready replaces its state in the table.
        """
        if self._live is not None and not self._verbose:
            if self._rows.get(name) != "ready":
                self._rows[name] = _LOG_PREFIX.sub("", text)
        else:
            self.show(f"{name} | {text}")

    def show(self, text: str) -> None:
        """Prints a text without markup."""
        self._console.print(text, markup=False)

    def settle(self) -> None:
        """Ends the live table; from now on everything is printed line by line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _plain(self, name: str, text: str) -> None:
        # If only numbers in a state changed, print it at most once in _PLAIN_SECONDS.
        kind, now = _NUMBERS.sub("#", text), time.monotonic()
        shown, at = self._shown.get(name, ("", 0.0))
        if kind != shown or now - at > _PLAIN_SECONDS:
            self._shown[name] = (kind, now)
            self.show(f"{name}: {text}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        now = time.monotonic()
        for name, text in self._rows.items():
            done = text == "ready"
            mark = Text("✓", style="green") if done else Spinner("dots")
            seconds = "" if done else f"{now - self._began[name]:.0f} s"
            row = Text(text, no_wrap=True, overflow="ellipsis")
            table.add_row(mark, Text(name, style="bold"), row, Text(seconds, style="dim"))
        return table
