"""Shows how programs start: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import re
import sys
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
# The prefix of our log lines: date, time, level, logger.
_LOG_PREFIX: Final = re.compile(r"^[\d-]+ [\d:,.]+ [A-Z]+ [\w.]+ ")


class _Output:
    """Standard output that may fail: its reader has left, its disk is full, or it has no such
    character.

    The reader of `isthmus up | tee log` leaves at the Ctrl-C that stops the programs in order, and
    an exception would end them at once instead.
    """

    def __init__(self) -> None:
        self._file = sys.stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            try:
                self._file.write(text)
            except UnicodeEncodeError as error:
                self._file.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except BrokenPipeError:
            # Python flushes once more at its exit, and would end with status 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
        except OSError:
            pass


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
