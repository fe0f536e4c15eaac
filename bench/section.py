"""Options, time limits, progress and exit status, shared by the sections of `make bench`.

A section is a module with a `main` that `python -m bench` runs as a process of its own, with the
options of `options`. It prints progress to stderr and tables to stdout, and writes every raw figure
to build/bench/NAME.json. If it cannot measure a part, it measures the others, and ends with status
1 by `end`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from bench import measure, table
from bench.processes import ROOT

FOLDER: Final = ROOT / "build" / "bench"
"""The folder of the raw figures."""

T = TypeVar("T")


def parser(name: str, about: str | None, repeats: int) -> argparse.ArgumentParser:
    """Makes a command line with the options of every section.

    Args:
        name: The section's module in `bench`, which is also the name of its JSON file.
        about: The module's docstring.
        repeats: The most passes.
    """
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    add = made.add_argument
    add("--repeats", type=int, default=repeats, help="the most passes (default %(default)s)")
    add("--minutes", type=float, default=float("inf"), help="no pass begins that would end later")
    add("--quick", action="store_true", help="one short pass; the figures mean little")
    add("--json", type=Path, default=FOLDER / f"{name}.json", help="default %(default)s")
    return made


def passes(options: argparse.Namespace) -> Iterator[int]:
    """Numbers the passes from 0: as many as the options ask for, and as fit into their minutes.

    A pass begins if the longest one before it would still fit. The first one always begins.
    """
    began = time.monotonic()
    longest = 0.0
    repeats = 1 if options.quick else options.repeats
    for number in range(repeats):
        start = time.monotonic()
        if number and start - began + longest > 60 * options.minutes:
            progress(f"{number} of {repeats} passes fit into {options.minutes:g} minutes")
            return
        yield number
        longest = max(longest, time.monotonic() - start)


def in_turn(items: Sequence[T], repeat: int) -> list[T]:
    """The items in their order, of which each pass begins with another one."""
    shift = repeat % len(items)
    return [*items[shift:], *items[:shift]]


def progress(line: str) -> None:
    """Prints a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Writes the raw figures to the file of `--json`."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document), encoding="utf-8")


def settings(options: argparse.Namespace) -> dict[str, str]:
    """The options as text, for the raw figures."""
    return {name: str(value) for name, value in vars(options).items()}


def record(entries: Iterable[dict[str, Any]], options: argparse.Namespace) -> table.Results:
    """Writes the entries, with the machine and the settings, to the file of `--json`.

    Args:
        entries: An iterator that performs a run for each entry.
        options: The command line.
    """
    runs: list[dict[str, Any]] = []
    machine = measure.machine()
    document = {"machine": machine, "settings": settings(options), "runs": runs}
    print(table.about(machine), flush=True)
    for entry in entries:
        runs.append(entry)
        state = "void" if entry["void"] else "ok"
        progress(f"{entry['repeat'] + 1} {entry['scenario']:20} {entry['subject']:28} {state}")
        # The file is written after each run, so that an interrupted benchmark keeps its entries.
        write(options, document)
    return table.Results(runs)


def show(
    results: table.Results,
    bounds: Sequence[table.Figure],
    columns: Sequence[tuple[str, str]],
    path: Path,
) -> None:
    """Prints both tables and the place of the raw figures."""
    for part in (table.headline(results, bounds), table.details(results, columns)):
        print("\n" + table.render(part))
    print(f"\nEvery raw figure: {path}", flush=True)


def end(faults: Sequence[str]) -> None:
    """Prints what could not be measured; with any, ends the process with status 1."""
    for fault in faults:
        print(fault, flush=True)
    if faults:
        sys.exit(1)


def raise_file_limit() -> None:
    """Raises the limit of open files, which subjects inherit: a stream needs two in a gateway."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
