"""The targets, and the tables of the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.measure import median

OURS: Final = "isthmus"
DIRECT: Final = "direct"
MESSAGE_A_TOKEN: Final = "isthmus, a message a token"  # noqa: S105
SMG: Final = "SMG"
LITELLM: Final = "LiteLLM"

TARGETS_BASE64_MS: Final = 1.0
"""Time of base64 of 1 MiB, in ms, on the machine on which the absolute targets were set."""

Run = dict[str, Any]


class Results:
    """The runs of all passes."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)

    def values(self, scenario: str, subject: str, figure: str) -> dict[int, float]:
        """Returns a figure of each pass, by its number, without void runs."""
        return {
            run["repeat"]: run["figures"][figure]
            for run in self.runs
            if (run["scenario"], run["subject"]) == (scenario, subject)
            and not run["void"]
            and figure in run["figures"]
        }

    def pooled(self, scenario: str, subject: str, times: str, percent: float) -> float | None:
        """Returns a percentile over the times of all passes, in milliseconds.

        Args:
            scenario, subject: The runs.
            times: The name of the times in a run's result: "ttft_ms", "gap_ms" or "latency_ms".
            percent: From 0 to 100.
        """
        raw = [
            one
            for run in self.runs
            if (run["scenario"], run["subject"]) == (scenario, subject) and not run["void"]
            for one in run["result"][times].get("raw", ())
        ]
        return float(np.percentile(raw, percent)) if raw else None

    def subjects(self) -> list[str]:
        """Returns the subjects' names in order of appearance."""
        return list(dict.fromkeys(run["subject"] for run in self.runs))

    def scenarios(self) -> list[str]:
        """Returns the scenarios' names in order of appearance."""
        return list(dict.fromkeys(run["scenario"] for run in self.runs))


@dataclass(frozen=True)
class Figure:
    """A row of the headline table.

    Attributes:
        title: The measured quantity with its unit.
        compute: Returns our value, the peer's value and the value that has targets.
        peer: The subject with which ours is compared.
        must, aim: Targets; None for no target.
        at_least: Whether the targets are lower bounds.
    """

    title: str
    compute: Callable[[Results], tuple[float | None, float | None, float | None]]
    peer: str
    must: float | None
    aim: float | None
    at_least: bool = False

    def verdict(self, value: float | None) -> str:
        """Returns "aim" or "must" for the target that is met, or "no"."""
        if value is None:
            return "not measured"
        if self.aim is None and self.must is None:
            return ""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (value >= bound if self.at_least else value <= bound):
                return name
        return "no"


_Compute = Callable[[Results], tuple[float | None, float | None, float | None]]


def ratio(scenario: str, figure: str, peer: str) -> _Compute:
    """Compares with a peer: the value is the median of the ratios within each pass."""

    def compute(results: Results) -> tuple[float | None, float | None, float | None]:
        ours = results.values(scenario, OURS, figure)
        theirs = results.values(scenario, peer, figure)
        ratio = median(ours[repeat] / theirs[repeat] for repeat in ours.keys() & theirs.keys())
        return median(ours.values()), median(theirs.values()), ratio

    return compute


def own(scenario: str, figure: str, scale: float = 1.0, peer: str = SMG) -> _Compute:
    """Compares with nothing: the value is our median, times `scale`."""

    def compute(results: Results) -> tuple[float | None, float | None, float | None]:
        ours = median(results.values(scenario, OURS, figure).values())
        theirs = median(results.values(scenario, peer, figure).values())
        ours = None if ours is None else ours * scale
        return ours, None if theirs is None else theirs * scale, ours

    return compute


def _added_first_token(percent: float) -> _Compute:
    def compute(results: Results) -> tuple[float | None, float | None, float | None]:
        ours = results.pooled("ttft", OURS, "ttft_ms", percent)
        direct = results.pooled("ttft", DIRECT, "ttft_ms", percent)
        added = None if ours is None or direct is None else ours - direct
        return ours, direct, added

    return compute


def _overload_first_token(results: Results) -> tuple[float | None, float | None, float | None]:
    over = results.pooled("overload", OURS, "ttft_ms", 99)
    half = results.pooled("half-load", OURS, "ttft_ms", 99)
    return over, half, None if over is None or not half else over / half


FIGURES: Final = (
    Figure(
        "edge CPU a token, 64 streams at 10 ms, us",
        ratio("paced", "edge_us_per_token", SMG),
        SMG,
        0.75,
        0.6,
    ),
    Figure(
        "edge + worker CPU a token, paced, us",
        ratio("paced", "edge_and_worker_us_per_token", SMG),
        SMG,
        0.60,
        0.45,
    ),
    Figure(
        "the same, against a message a token",
        ratio("paced", "edge_and_worker_us_per_token", MESSAGE_A_TOKEN),
        MESSAGE_A_TOKEN,
        None,
        0.3,
    ),
    Figure(
        "plain chat requests an edge CPU second",
        ratio("plain", "requests_per_edge_cpu_s", SMG),
        SMG,
        2.6,
        3.5,
        at_least=True,
    ),
    Figure(
        "saturated: chunks an edge CPU second",
        ratio("saturated", "chunks_per_edge_cpu_s", SMG),
        SMG,
        1.0,
        1.3,
        at_least=True,
    ),
    Figure(
        "overload: thousand tokens an edge CPU second",
        own("overload", "tokens_per_edge_cpu_s", 1e-3),
        SMG,
        150,
        200,
        at_least=True,
    ),
    Figure("overload: TTFT p99, ms, / at half load", _overload_first_token, "half load", 20, 10),
    Figure("added TTFT p50 at 25 requests/s, ms", _added_first_token(50), DIRECT, 2.2, 1.5),
    Figure("added TTFT p99 at 25 requests/s, ms", _added_first_token(99), DIRECT, 5, 3),
    Figure("chunk gap p99, paced 10 ms, ms", own("paced", "gap_p99_ms"), SMG, 15, 12.5),
    Figure("edge memory an open stream, KB", own("held", "edge_kb_per_stream"), SMG, None, 50),
    Figure(
        "embeddings 256 x 1024, base64, edge CPU ms",
        own("embeddings-base64", "edge_us_per_request", 1e-3),
        SMG,
        2,
        1.5,
    ),
    Figure(
        "embeddings 256 x 1024, floats, edge CPU ms",
        own("embeddings-float", "edge_us_per_request", 1e-3),
        SMG,
        10,
        8,
    ),
    Figure("edge memory after load, MB", own("plain", "edge_rss_mb"), SMG, 90, 75),
    Figure("edge start to first answer, s", own("plain", "start_s"), SMG, 1.0, 0.8),
)

DETAILS: Final = (
    ("edge_us_per_chunk", "edge us/chunk"),
    ("edge_us_per_token", "edge us/token"),
    ("worker_us_per_token", "worker us/token"),
    ("edge_us_per_request", "edge us/request"),
    ("worker_us_per_request", "worker us/request"),
    ("requests_per_s", "requests/s"),
    ("tokens_per_s", "tokens/s"),
    ("tokens_per_chunk", "tokens/chunk"),
    ("ttft_p50_ms", "TTFT p50 ms"),
    ("ttft_p99_ms", "TTFT p99 ms"),
    ("gap_p99_ms", "gap p99 ms"),
    ("client_us_per_chunk", "client us/chunk"),
    ("edge_rss_mb", "edge MB"),
)


NOTES: Final = (
    "Every gateway checks an API key. CPU is user and system time of all processes of a gateway.",
    "SMG renders chats, tokenizes and detokenizes in its gateway; the inference process of Isthmus",
    "does. SMG's worker here is a stand-in that sends ready-made messages: it fills no columns,",
    "checks nothing and counts nothing. LiteLLM writes a line of access log for each request.",
    "A message a token is our own edge with one gRPC call for each request.",
)
"""Lines that explain the comparison, printed below the tables."""


def about(machine: Mapping[str, Any]) -> str:
    """Describes the machine, and its speed beside that on which the absolute targets were set."""
    return (
        f"{machine['cpu']}, {machine['cores_allowed']} of {machine['cores']} cores,"
        f" Linux {machine['kernel']}, Python {machine['python']}\n"
        f"A million turns of a Python loop: {machine['loop_ms']:.0f} ms. base64 of 1 MiB:"
        f" {machine['base64_ms']:.2f} ms; where the targets in ms, in tokens a second and in"
        f" seconds were set it took {TARGETS_BASE64_MS:.1f} ms."
    )


def headline(results: Results, figures: Iterable[Figure]) -> list[list[str]]:
    """Returns the rows of the figures with their targets, without scenarios that did not run."""
    rows = [["figure", OURS, "beside it", "", "ratio or value", "must", "aim", "met"]]
    for figure in figures:
        ours, theirs, value = figure.compute(results)
        if ours is None and theirs is None:
            continue
        sign = ">=" if figure.at_least else "<="
        bounds = ["" if b is None else f"{sign} {b:g}" for b in (figure.must, figure.aim)]
        cells = [figure.title, _number(ours), _number(theirs), figure.peer if theirs else ""]
        rows.append([*cells, _number(value), *bounds, figure.verdict(value)])
    return rows


def details(results: Results, columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Returns rows with the medians of every subject in every scenario.

    Args:
        results: The runs.
        columns: The figure and the title of each column.
    """
    rows = [["scenario", "subject", *(title for _, title in columns), "void"]]
    for scenario in results.scenarios():
        for subject in results.subjects():
            runs = [r for r in results.runs if (r["scenario"], r["subject"]) == (scenario, subject)]
            if not runs:
                continue
            medians = [
                median(results.values(scenario, subject, name).values()) for name, _ in columns
            ]
            void = sum(run["void"] for run in runs)
            cells = [_number(value) for value in medians]
            rows.append([scenario, subject, *cells, f"{void}/{len(runs)}" if void else ""])
    return rows


def faults(results: Results) -> list[str]:
    """Describes the errors of void runs, a line for each."""
    return [
        f"void: {run['scenario']}, {run['subject']}, repeat {run['repeat']}: "
        + json.dumps(run["result"]["errors"])
        for run in results.runs
        if run["void"]
    ]


def render(rows: Sequence[Sequence[str]]) -> str:
    """Aligns the columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
