"""One pass: all subjects get the same loads, and one that fails does not end the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

from bench.isthmus import ISTHMUS, MESSAGE_A_TOKEN
from bench.scenarios import Scenario, half_pace, run
from bench.section import in_turn, progress
from bench.subject import Running, Source, Subject

OURS: Final = frozenset({ISTHMUS.name})
# By subject, beginnings of the names of the scenarios that it takes part in; other subjects take
# part in all. LiteLLM would take minutes for the others.
_TAKES_PART: Final = {
    "LiteLLM": ("paced", "plain", "ttft"),
    MESSAGE_A_TOKEN.name: ("paced", "growth", "pace-"),
}


def one_pass(
    repeat: int, subjects: Sequence[Subject], scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """Runs every scenario once with every subject; scenarios with equal sources share a start.

    Args:
        repeat: The number of the pass, from 0; it decides the order of the subjects.
        subjects: The gateways.
        scenarios: The loads.

    Returns:
        An entry of the raw figures for each run.
    """
    order = in_turn(subjects, repeat)
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
                progress(f"{names}, {subject.name}: needs {half_of}, not measured")
                continue
            for scenario, result in _started(subject, pace, chosen):
                entry = _entry(repeat, scenario, subject, pace, result)
                if not entry["void"] and "tokens_per_s" in entry["figures"]:
                    reached[scenario.name, subject.name] = entry["figures"]["tokens_per_s"]
                yield entry


def _takes_part(subject: Subject, scenario: Scenario) -> bool:
    if not scenario.name.startswith(_TAKES_PART.get(subject.name, "")):
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
    except Exception as error:  # a subject that does not start must not end the others
        for scenario in left:
            yield scenario, {"errors": {f"{type(error).__name__}: {error}": 1}}


def _run(scenario: Scenario, running: Running) -> dict[str, Any]:
    result = run(scenario, running)
    if running.start_seconds is not None:
        result.setdefault("figures", {})["start_s"] = running.start_seconds
    return result
