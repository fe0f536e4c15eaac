"""Measures what metrics cost: `python -m bench.metrics`, a section of `make bench`.

A pass starts the programs once and puts the same load on them in slices of a second or two, of
which every other one has the counting turned off (bench/metrics_switch.py). So other work of the
machine and differences between starts affect both kinds alike. The CPU is that of edge and
inference process. Then the edge, without a load, is asked for its metrics every 50 ms, and for
/health as often, to tell how much of the cost is that of an HTTP request.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench import measure, section
from bench.isthmus import SWITCHED_METRICS
from bench.scenarios import Scenario, all_scenarios, run
from bench.subject import Running

# The scenarios, each with the unit of work by which its CPU is divided.
_LOADS: Final = {"plain": "requests", "paced": "tokens"}
# The most CPU that metrics may add to a piece of work, in percent.
_BAR: Final = 3.0
# The paths that are asked for, each with the most of a core that this may take, in percent.
_SCRAPED: Final = {"/metrics": 1.0, "/health": None}
_SCRAPE_SECONDS: Final = 0.05


@dataclass
class Costs:
    """The measurements of all passes.

    Attributes:
        pairs: Of each load, the microseconds for a piece of work in each pair of neighbouring
            slices: with metrics, and without.
        requests: Of each path, the part of a core (0 to 1) that its requests took.
    """

    pairs: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {name: [] for name in _LOADS}
    )
    requests: dict[str, list[float]] = field(
        default_factory=lambda: {path: [] for path in _SCRAPED}
    )


def one_pass(seconds: float, turns: int, costs: Costs) -> None:
    """Runs each load, and then the requests without a load.

    Args:
        seconds: Of a slice.
        turns: Pairs of slices. In every other one the slice without metrics comes first.
        costs: Takes the results.
    """
    for scenario in _scenarios(seconds):
        with SWITCHED_METRICS.start(scenario.source) as running:
            for turn in range(turns):
                first = turn % 2 == 0
                slices = {on: _slice(scenario, running, on=on) for on in (first, not first)}
                costs.pairs[scenario.name].append((slices[True], slices[False]))
            _switch(running, on=True)
            for _ in range(turns // 4 if scenario.name == "plain" else 0):
                idle = _edge_cpu(running, seconds)
                for path, found in costs.requests.items():
                    found.append(_edge_cpu(running, seconds, path) - idle)


def _scenarios(seconds: float) -> Iterator[Scenario]:
    for scenario in all_scenarios(quick=False):
        if scenario.name in _LOADS:
            yield dataclasses.replace(scenario, load={**scenario.load, "seconds": seconds})


def _switch(running: Running, *, on: bool) -> None:
    for (process,) in running.groups.values():
        os.kill(process, signal.SIGUSR2 if on else signal.SIGUSR1)


def _slice(scenario: Scenario, running: Running, *, on: bool) -> float:
    """Microseconds of CPU for a piece of work."""
    _switch(running, on=on)
    result = run(scenario, running)
    if result["errors"]:
        sys.exit(f"{scenario.name}: {result['errors']}")
    used: float = sum(result["cpu_seconds"].values())
    return used / result[_LOADS[scenario.name]] * 1e6


def _edge_cpu(running: Running, seconds: float, path: str = "") -> float:
    """CPU seconds of the edge in a second, while a path is asked for every 50 ms."""
    groups = {"edge": running.groups["edge"]}
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=10)

    def ask() -> None:
        connection.request("GET", path, headers={"Authorization": f"Bearer {running.key}"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            sys.exit(f"{path} answered {response.status}")

    # The first answers with metrics are all made anew, those after them every two seconds.
    for _ in range(20 if path else 0):
        ask()
    before, began = measure.cpu_seconds(groups)["edge"], time.monotonic()
    for number in range(round(seconds / _SCRAPE_SECONDS)):
        if path:
            ask()
        time.sleep(max(began + (number + 1) * _SCRAPE_SECONDS - time.monotonic(), 0.0))
    used, passed = measure.cpu_seconds(groups)["edge"] - before, time.monotonic() - began
    connection.close()
    return used / passed


def report(costs: Costs) -> Iterator[str]:
    """The lines of the table: medians, and in brackets the quartiles."""
    yield f"{'CPU of edge and inference process':42} {'with':>8} {'without':>8}   more"
    for load, work in _LOADS.items():
        ours, bare = zip(*costs.pairs[load], strict=True)
        more = [100 * (a / b - 1) for a, b in costs.pairs[load]]
        name = f"{load}, us for each of the {work}"
        yield f"{name:42} {_median(ours):8.1f} {_median(bare):8.1f}   {_percent(more, _BAR)}"
    for path, found in costs.requests.items():
        name = f"GET {path} every 50 ms, of a core"
        yield f"{name:62}{_percent([100 * each for each in found], _SCRAPED[path])}"


def _median(values: Sequence[float]) -> float:
    return measure.median(values) or 0.0


def _percent(values: Sequence[float], bar: float | None) -> str:
    lower, middle, upper = np.percentile(values, (25, 50, 75))
    wanted = "" if bar is None else f", at most {bar:g} % wanted"
    return f"{middle:.2f} % ({lower:.2f} to {upper:.2f}){wanted}"


def main() -> None:
    """Runs the passes, writes the measurements and prints the table."""
    parser = section.parser("metrics", __doc__, repeats=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a slice")
    parser.add_argument("--turns", type=int, default=16, help="pairs of slices in a pass")
    options = parser.parse_args()
    section.raise_file_limit()
    seconds, turns = (0.5, 4) if options.quick else (options.seconds, options.turns)
    costs = Costs()
    for number in section.passes(options):
        one_pass(seconds, turns, costs)
        section.progress(f"pass {number + 1} of metrics")
        section.write(options, dataclasses.asdict(costs))
    print("\n".join(report(costs)))


if __name__ == "__main__":
    main()
