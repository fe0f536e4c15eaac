"""Runs all benchmarks and prints their tables: `python -m bench [--quick]`, or `make bench`.

A section is a process of its own, so one that fails does not end the others. Progress goes to
stderr. Tables go to stdout and, by section, to build/bench/NAME.txt; the raw figures are in
build/bench/NAME.json. The status is 1 if a section could not measure everything.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.processes import ROOT
from bench.section import FOLDER, progress
from launch import parent_death

# Minutes of all sections together; `make bench` also installs what they need.
_MINUTES: Final = 50.0


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: Its name on the command line, of its module in `bench`, and of its files.
        what: What it measures.
        share: Its part of the minutes, in proportion to the shares of the other sections.
        quick: Whether it is part of a quick run.
    """

    name: str
    what: str
    share: float
    quick: bool = True


SECTIONS: Final = (
    Section("start", "seconds until the programs respond", 1),
    Section("gateways", "gateways without a model", 16),
    Section("growth", "how the cost of a token grows with streams and pace", 3, quick=False),
    Section("added_latency", "added latency by the method of llm-gateway-bench", 2),
    Section("load_clients", "guidellm and vllm bench serve against the gateways", 5),
    Section("engines", "Isthmus and vLLM's own server with the same model", 11),
    Section("cpu", "Isthmus, vLLM's own server and llama.cpp on this CPU", 8, quick=False),
    Section("embeddings", "servers of an embedding model", 4),
    Section("metrics", "what metrics cost", 3),
    Section("images", "images and the event loop", 1),
)


def main() -> int:
    """Runs the sections; returns the exit status."""
    options = _options()
    chosen = [
        each
        for each in SECTIONS
        if (each.name in options.only if options.only else each.quick or not options.quick)
    ]
    shares = sum(each.share for each in SECTIONS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    ended: list[tuple[str, bool, float]] = []
    for number, section in enumerate(chosen, 1):
        minutes = options.minutes * section.share / shares
        limit = "one short pass" if options.quick else f"about {minutes:.0f} minutes"
        progress(f"\n[{number} of {len(chosen)}] {section.name}: {section.what}; {limit}")
        began = time.monotonic()
        complete = _run(section.name, minutes, quick=options.quick)
        ended.append((section.name, complete, time.monotonic() - began))
    progress("")
    for name, complete, seconds in ended:
        state = "measured" if complete else "NOT COMPLETE"
        progress(f"{name:12} {state:12} {seconds / 60:5.1f} minutes")
    progress(f"{'all':25} {sum(seconds for *_, seconds in ended) / 60:5.1f} minutes")
    return 0 if all(complete for _, complete, _ in ended) else 1


def _run(name: str, minutes: float, *, quick: bool) -> bool:
    """Runs a section, passes its tables on, and tells whether it measured everything."""
    command = [sys.executable, "-m", f"bench.{name}", "--minutes", f"{minutes:.2f}"]
    # A killed benchmark takes the section with it.
    wrapper = [sys.executable, "-P", parent_death.__file__, str(os.getpid())]
    command = [*wrapper, *command, *(["--quick"] if quick else [])]
    with (FOLDER / f"{name}.txt").open("w", encoding="utf-8") as file:
        print(f"\n== {name} ==", flush=True)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                file.write(line)
    return process.returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", type=_names(names), help=f"some of {','.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one short pass of each section")
    help_text = "of all sections together (default %(default)g); more give more passes"
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=help_text)
    return parser.parse_args()


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}")
        return chosen

    return read


if __name__ == "__main__":
    sys.exit(main())
