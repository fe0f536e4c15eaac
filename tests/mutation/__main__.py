"""Changes one place of a module at a time, and runs its tests: one of them has to fail.

    python -m tests.mutation                  all parts
    python -m tests.mutation admission        some of them
    python -m tests.mutation admission --again      not what was killed the last time

parts.toml has the files and tests of each part, equivalent.toml the mutants that behave like the
code. Each mutant runs in a fork of a process that has imported everything and collected the tests,
where the changed function gets its new code (swap.py). What survives that, and what is not within a
function, runs again in a fork of a process that has imported the libraries but no code of Isthmus.
Nothing is written to the working tree.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from _pytest.main import pytest_runtestloop

from tests.mutation.operators import Mutant, mutants
from tests.mutation.swap import code_of_change, functions_of, swap

HERE = Path(__file__).parent
REPORT = Path("build/mutants")
# Without the fixtures of conftest.py, which import the whole edge and service.
PYTEST = (
    *("-x", "-q", "--assert=plain", "--disable-plugin-autoload", "--noconftest"),
    *(
        "--capture=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_asyncio.plugin",
        "-p",
        "pytest_timeout",
    ),
    *("-p", "pytest_timeout", "-p", "pytest_rerunfailures"),
)
# A mutant may allocate without end.
MEMORY_BYTES = 2 * 1024**3


@dataclass
class _Run:
    """The tests of one mutant, in a child process."""

    mutant: Mutant
    until: float
    log: Path


class _Loader(importlib.machinery.SourceFileLoader):
    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, path: Path, source: str) -> None:
        self._name = ".".join(path.with_suffix("").parts)
        self._path = str(path.absolute())
        self._source = source

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, self._path)
        loader.code = compile(self._source, self._path, "exec")
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


Start = Callable[[Mutant | None, Path], int]
"""Starts the tests of a mutant, whose output goes to the path; returns the child process."""


def _fork(log: Path, run: Callable[[], int]) -> int:
    """Forks a process whose exit status is that of `run`."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    status = 1
    try:
        status = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _importing(path: Path, tests: list[str]) -> Start:
    """Starts tests that import the mutant."""

    def start(mutant: Mutant | None, log: Path) -> int:
        def run() -> int:
            if mutant is not None:
                sys.meta_path.insert(0, _Finder(path, mutant.source))
            return int(pytest.main([*PYTEST, *tests]))

        return _fork(log, run)

    return start


class _Swapping:
    """A plugin of pytest that runs the collected tests once for each mutant, and ends the process.

    Args:
        path: The changed file.
        found: Mutants; those that it cannot make, and those that survive, have no end.
        jobs: Tests that run at a time.
        ends: Receives a line of JSON for each end: the place of the mutant, and its end.
    """

    def __init__(self, path: Path, found: list[Mutant], jobs: int, ends: Path) -> None:
        self._path = path
        self._found = found
        self._jobs = jobs
        self._ends = ends

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        source, functions = self._path.read_text(), functions_of(self._path)
        changes = {
            mutant: change
            for mutant in self._found
            if (change := code_of_change(source, mutant.source)) is not None
        }
        places = {mutant: place for place, mutant in enumerate(self._found)}

        def start(mutant: Mutant | None, log: Path) -> int:
            def run() -> int:
                if mutant is not None and not swap(functions, changes[mutant]):
                    return 0
                try:
                    pytest_runtestloop(session)
                except (session.Failed, session.Interrupted):
                    return 1
                return int(session.testsfailed > 0)

            return _fork(log, run)

        seconds = _baseline(self._path, start)
        with self._ends.open("w") as ends:
            for mutant, end in _run_all(list(changes), start, self._jobs, 5 + 4 * seconds):
                if end != "survived":
                    print(json.dumps([places[mutant], end]), file=ends, flush=True)
        return True


def _swapped(path: Path, tests: list[str], found: list[Mutant], jobs: int) -> dict[Mutant, str]:
    """The ends of the mutants that are noticed when a function gets their code."""
    ends = REPORT / "ends.jsonl"
    ends.unlink(missing_ok=True)

    def run() -> int:
        return int(pytest.main([*PYTEST, *tests], plugins=[_Swapping(path, found, jobs, ends)]))

    log = REPORT / "swapping.log"
    _, status = os.waitpid(_fork(log, run), 0)
    if status:
        sys.exit(f"the tests of {path} fail without a change:\n{log.read_text()}")
    return {found[place]: end for place, end in map(json.loads, ends.read_text().splitlines())}


def _baseline(path: Path, start: Start) -> float:
    began = time.monotonic()
    log = REPORT / "baseline.log"
    _, status = os.waitpid(start(None, log), 0)
    if status:
        sys.exit(f"the tests of {path} fail without a change:\n{log.read_text()}")
    return time.monotonic() - began


def _run_all(
    found: list[Mutant], start: Start, jobs: int, seconds: float
) -> Iterator[tuple[Mutant, str]]:
    """Yields each mutant with killed, timeout or survived."""
    waiting = list(reversed(found))
    running: dict[int, _Run] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            log = REPORT / f"{os.getpid()}-{len(waiting)}.log"
            child = start(mutant, log)
            running[child] = _Run(mutant, time.monotonic() + seconds, log)
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            run = running.pop(child)
            run.log.unlink()
            code = os.waitstatus_to_exitcode(status)
            yield run.mutant, "killed" if code else "survived"
            continue
        for child, run in list(running.items()):
            if time.monotonic() > run.until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                run.log.unlink()
                del running[child]
                yield run.mutant, "timeout"
        time.sleep(0.01)


def _equivalent() -> set[tuple[str, ...]]:
    entries = tomllib.loads((HERE / "equivalent.toml").read_text())["mutants"]
    return {(e["file"], e["where"], e["before"], e["after"]) for e in entries}


def _measure(name: str, part: dict[str, Any], options: argparse.Namespace) -> Counter[str]:
    equivalent, ends = _equivalent(), list[tuple[str, str, str, str, str]]()
    unused = {key for key in equivalent if key[0] in part["files"]}
    report = REPORT / f"{name}.json"
    noticed = _noticed(report) if options.again else set()
    for file in part["files"]:
        path = Path(file)
        todo = []
        for mutant in mutants(path):
            key = (file, mutant.where, mutant.before, mutant.after)
            if key in equivalent:
                unused.discard(key)
                ends.append((*key, "equivalent"))
            elif key in noticed:
                ends.append((*key, "killed"))
            else:
                todo.append(mutant)
        noticed_ones = _swapped(path, part["tests"], todo, options.jobs) if todo else {}
        start = _importing(path, part["tests"])
        seconds = _baseline(path, start)
        print(f"{file}: {len(todo)} mutants, {seconds:.1f} s without a change", flush=True)
        rest = [mutant for mutant in todo if mutant not in noticed_ones]
        for mutant, end in chain(
            noticed_ones.items(), _run_all(rest, start, options.jobs, 5 + 4 * seconds)
        ):
            ends.append((file, mutant.where, mutant.before, mutant.after, end))
            if end == "survived":
                print(f"  {file}:{mutant.line} {mutant.where}", flush=True)
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    for key in sorted(unused):
        print(f"  equivalent.toml names no mutant: {key}")
    report.write_text(json.dumps(ends, indent=1))
    return Counter(end for *_, end in ends)


def _noticed(report: Path) -> set[tuple[str, ...]]:
    """The mutants that were killed the last time."""
    ends = [tuple(entry) for entry in json.loads(report.read_text())]
    survived = {entry[:-1] for entry in ends if entry[-1] == "survived"}
    return {entry[:-1] for entry in ends} - survived


def _print_table(rows: dict[str, Counter[str]]) -> None:
    print("\n| part | mutants | killed | survived | equivalent | score |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, counts in rows.items():
        killed = counts["killed"] + counts["timeout"]
        others = killed + counts["survived"]
        score = f"{100 * killed / others:.1f} %" if others else "-"
        print(
            f"| {name} | {counts.total()} | {killed} | {counts['survived']} "
            f"| {counts['equivalent']} | {score} |"
        )


def main() -> None:
    """Measures the parts of the arguments, or all; the exit status is 1 if one is below 95 %."""
    parts = tomllib.loads((HERE / "parts.toml").read_text())
    libraries = parts.pop("libraries")
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="part")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="not what was killed the last time")
    options = parser.parse_args()
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    for library in libraries:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    REPORT.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in options.parts or parts:
        rows[name] = _measure(name, parts[name], options)
    _print_table(rows)
    for counts in rows.values():
        killed = counts["killed"] + counts["timeout"]
        if killed < 0.95 * (killed + counts["survived"]):
            sys.exit(1)


if __name__ == "__main__":
    main()
