"""Compares gateways without a model: `python -m bench.run`, or `make bench`.

Each pass starts every subject with every token source and puts the same loads on it. Other work of
the machine then affects all subjects alike, so ratios are taken within a pass. The program prints a
table and writes all raw figures to build/bench/results.json. A run with an error is void.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import measure, table
from bench.direct import Direct
from bench.isthmus import ISTHMUS, MESSAGE_A_TOKEN
from bench.processes import ROOT
from bench.scenarios import Scenario, all_scenarios, half_pace, run
from bench.subject import Running, Source, Subject

RESULTS: Final = ROOT / "build" / "bench" / "results.json"
OURS: Final = frozenset({ISTHMUS.name})
# The peer that runs a real model and is therefore not comparable here.
_WITH_A_MODEL: Final = "vllm"
# Streams beyond which a peer would take minutes for a scenario.
_MOST_STREAMS: Final = {"LiteLLM": 64}


def all_subjects() -> dict[str, Subject]:
    """Returns our subjects and the peers, by their names on the command line."""
    subjects: dict[str, Subject] = {
        "direct": Direct(),
        "isthmus": ISTHMUS,
        "message-a-token": MESSAGE_A_TOKEN,
    }
    try:
        from bench.peers import PEERS
    except ImportError as error:
        print(f"no peers: {error}", file=sys.stderr)
        return subjects
    return subjects | {name: peer for name, peer in PEERS.items() if name != _WITH_A_MODEL}


def one_pass(
    repeat: int, subjects: Sequence[Subject], scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """Runs every scenario once with every subject; scenarios with equal sources share a start.

    Args:
        repeat: The number of the pass, from 0; it decides the order of the subjects.
        subjects: The gateways.
        scenarios: The loads.

    Returns:
        An entry of results.json for each run.
    """
    # Each pass begins with another subject.
    shift = repeat % len(subjects)
    order = [*subjects[shift:], *subjects[:shift]]
    reached: dict[tuple[str, str], float] = {}
    for source, half_of in dict.fromkeys((s.source, s.half_of) for s in scenarios):
        group = [s for s in scenarios if (s.source, s.half_of) == (source, half_of)]
        for subject in order:
            chosen = [scenario for scenario in group if _takes_part(subject, scenario)]
            pace = source
            if half_of and (half_of, subject.name) in reached:
                pace = half_pace(source, reached[half_of, subject.name])
            elif half_of:
                names = ", ".join(scenario.name for scenario in chosen)
                print(f"{names}, {subject.name}: needs {half_of}, not measured", file=sys.stderr)
                continue
            for scenario, result in _started(subject, pace, chosen):
                entry = _entry(repeat, scenario, subject, pace, result)
                if not entry["void"] and "tokens_per_s" in entry["figures"]:
                    reached[scenario.name, subject.name] = entry["figures"]["tokens_per_s"]
                yield entry


def _takes_part(subject: Subject, scenario: Scenario) -> bool:
    streams = scenario.load.get("connections", 1)
    if streams > _MOST_STREAMS.get(subject.name, streams):
        return False
    return subject.name in OURS or not scenario.only_ours


def _entry(
    repeat: int, scenario: Scenario, subject: Subject, pace: Source, result: dict[str, Any]
) -> dict[str, Any]:
    return {
        "repeat": repeat,
        "scenario": scenario.name,
        "subject": subject.name,
        "source": dataclasses.asdict(pace),
        "void": bool(result["errors"]),
        "figures": result.setdefault("figures", {}),
        "result": result,
    }


def _started(
    subject: Subject, source: Source, scenarios: Sequence[Scenario]
) -> Iterator[tuple[Scenario, dict[str, Any]]]:
    if not scenarios:
        return
    left = list(scenarios)
    try:
        with subject.start(source) as running:
            for scenario in scenarios:
                result = _run(scenario, running)
                left.remove(scenario)
                yield scenario, result
    except GeneratorExit:
        raise
    except Exception as error:  # a subject that does not start must not end the others
        for scenario in left:
            yield scenario, {"errors": {f"{type(error).__name__}: {error}": 1}}


def _run(scenario: Scenario, running: Running) -> dict[str, Any]:
    result = run(scenario, running)
    if running.start_seconds is not None:
        result.setdefault("figures", {})["start_s"] = running.start_seconds
    return result


def main() -> None:
    """Runs the comparison, writes the results and prints the tables."""
    subjects = all_subjects()
    arguments = _arguments(sorted(subjects))
    raise_file_limit()
    scenarios = [
        scenario
        for scenario in all_scenarios(quick=arguments.quick)
        if not arguments.only or any(scenario.name.startswith(name) for name in arguments.only)
    ]
    chosen = [subjects[name] for name in arguments.subjects or subjects]
    passes = (one_pass(repeat, chosen, scenarios) for repeat in range(arguments.repeats))
    results = record(itertools.chain.from_iterable(passes), arguments)
    show(results, table.FIGURES, table.DETAILS, arguments.json)
    print("\n".join(("", *table.NOTES)))


def record(entries: Iterable[dict[str, Any]], arguments: argparse.Namespace) -> table.Results:
    """Writes the entries, with the machine and the settings, to the file of `--json`.

    Args:
        entries: An iterator that performs a run for each entry.
        arguments: The command line.
    """
    runs: list[dict[str, Any]] = []
    settings = {key: str(value) for key, value in vars(arguments).items()}
    machine = measure.machine()
    document = {"machine": machine, "settings": settings, "runs": runs}
    print(table.about(machine), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        runs.append(entry)
        state = "void" if entry["void"] else "ok"
        name = f"{entry['scenario']:20} {entry['subject']:28}"
        print(f"{entry['repeat'] + 1} {name} {state}", flush=True)
        # The file is written after each run, so that an interrupted benchmark keeps its entries.
        arguments.json.write_text(json.dumps(document), encoding="utf-8")
    return table.Results(runs)


def show(
    results: table.Results,
    bounds: Sequence[table.Figure],
    columns: Sequence[tuple[str, str]],
    path: Path,
) -> None:
    """Prints both tables and the errors of void runs."""
    for part in (table.headline(results, bounds), table.details(results, columns)):
        print("\n" + table.render(part))
    for fault in table.faults(results):
        print(fault)
    print(f"\nEvery raw figure: {path}")


def _arguments(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=5, help="passes (default %(default)s)")
    add("--only", nargs="+", metavar="SCENARIO", help="names or their beginnings")
    add("--subjects", nargs="+", choices=names, help="default: all")
    add("--quick", action="store_true", help="seconds, not minutes; the figures mean little")
    add("--json", type=Path, default=RESULTS, help="default %(default)s")
    return parser.parse_args()


def raise_file_limit() -> None:
    """Raises the limit of open files, which subjects inherit: a stream needs two in a gateway."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
