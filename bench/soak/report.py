"""The report of a soak: a JSON file, and Markdown tables."""

from __future__ import annotations

import json
import statistics
from array import array
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import measure
from bench.soak.faults import Faults
from bench.soak.judge import CLASSES
from bench.soak.ledger import Executions
from bench.soak.record import Record, clean_stops, failed_during
from bench.soak.resources import Sampler


def build(
    record: Record,
    faults: Faults,
    sampler: Sampler,
    executions: Executions,
    *,
    seed: int,
    seconds: float,
    stopped: bool,
) -> dict[str, Any]:
    """Returns the report.

    Args:
        record, faults, sampler, executions: What happened.
        seed: Of the schedule and the requests.
        seconds: How long requests were sent.
        stopped: Whether all programs stopped cleanly at the end.
    """
    stops = clean_stops(faults.windows)
    during = failed_during(stops, record.failures)
    kinds = sorted({kind for kind, _ in record.outcomes})
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "machine": measure.machine(),
        "classes": {name: record.classes[name] for name in CLASSES},
        "problems": record.problems,
        "executions": executions.total,
        "moved": executions.moved,
        "requests": {
            kind: {what: n for (k, what), n in record.outcomes.items() if k == kind}
            for kind in kinds
        },
        "errors": [
            {"cause": cause, "error": error, "count": count}
            for (cause, error), count in record.errors.most_common()
        ],
        "unexplained": [asdict(failure) for failure in record.unexplained],
        "faults": dict(Counter(window.kind for window in faults.windows)),
        "fault_log": [asdict(window) for window in faults.windows],
        "notes": faults.notes,
        "clean_stops": len(stops),
        "failed_during_clean_stops": [asdict(failure) for failure in during],
        "seconds_by_kind": {kind: _percentiles(record.seconds[kind]) for kind in kinds},
        "first_byte_by_kind": {kind: _percentiles(record.firsts[kind]) for kind in kinds},
        "starts": dict(Counter(life.name for life in sampler.lives.values())),
        "processes": [life.row() for life in sampler.long_lives(seconds)],
        "all_processes": [life.row() for life in sampler.lives.values()],
        "stopped_cleanly": stopped,
    }


def failed(report: dict[str, Any]) -> bool:
    """Whether a problem of a class was found, or a request failed during a clean stop."""
    return any(report["classes"].values()) or bool(report["failed_during_clean_stops"])


def write(report: dict[str, Any], path: Path) -> None:
    """Writes the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """Returns the tables."""
    total = sum(sum(outcomes.values()) for outcomes in report["requests"].values())
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(report["faults"].items()))
    lines = [
        f"{report['seconds'] / 60:.1f} minutes, seed {report['seed']}: {total:,} requests and "
        f"{report['executions']:,} executions; {report['moved']} streams moved to the other "
        f"service before their first output. Faults: {faults}. The programs stopped "
        f"{'cleanly' if report['stopped_cleanly'] else 'uncleanly'} at the end.",
        "",
        "| lost | duplicated | corrupted | misdelivered | failed during "
        f"{report['clean_stops']} clean stops | unexplained errors |",
        "|--:|--:|--:|--:|--:|--:|",
        "| "
        + " | ".join(str(report["classes"][name]) for name in CLASSES)
        + f" | {len(report['failed_during_clean_stops'])} | {len(report['unexplained'])} |",
        "",
        *_requests(report),
        "",
        *_errors(report),
        "",
        *_processes(report),
    ]
    for title, texts in (("Problems", report["problems"]), ("Notes", report["notes"])):
        if texts:
            lines += ["", f"{title}:", "", *(f"* {text}" for text in texts[:20])]
    return "\n".join(lines)


def _requests(report: dict[str, Any]) -> list[str]:
    lines = [
        "| request | sent | ok | as cued | cancelled | failed | p50 | p99 | first byte p50 | p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, outcomes in report["requests"].items():
        sent = sum(outcomes.values())
        shown = [outcomes.get(name, 0) for name in ("ok", "as cued", "cancelled")]
        times = [
            *report["seconds_by_kind"][kind].values(),
            *report["first_byte_by_kind"][kind].values(),
        ]
        cells = [kind, sent, *shown, sent - sum(shown)]
        cells += ["" if one is None else f"{one * 1000:,.0f} ms" for one in times]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _errors(report: dict[str, Any]) -> list[str]:
    lines = ["| fault meanwhile | error | count |", "|---|---|--:|"]
    return lines + [f"| {e['cause']} | {e['error']} | {e['count']} |" for e in report["errors"]]


def _processes(report: dict[str, Any]) -> list[str]:
    lines = [
        "| process | starts | observed | RSS | RSS slope | open files | threads |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(report["processes"], key=lambda row: str(row["name"])):
        slope = row["slope_mib_per_hour"]
        first, last = row["start"], row["end"]
        cells = [
            row["name"],
            report["starts"][row["name"]],
            f"{row['seconds']:.0f} s",
            "{} to {} MiB".format(*row["rss_mib"]),
            "" if slope is None else f"{slope:+.1f} MiB/h",
            f"{first['files']} to {last['files']}",
            f"{first['threads']} to {last['threads']}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _percentiles(values: array[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"p50": values[0] if values else None, "p99": values[0] if values else None}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
