"""Plots results as SVG: `python -m bench.plot RESULTS... performance.svg`.

The results are build/bench/gateways.json and growth.json. There are two charts: the gateway's CPU
for a token by the number of streams, and the CPU of gateway and worker for a token. All colours
have a middle lightness, for light and dark pages.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from bench.measure import median
from bench.scenarios import GROWTH_STEP_SECONDS, PACED_STEP_SECONDS
from bench.table import DIRECT, LITELLM, MESSAGE_A_TOKEN, OURS, SMG, Results

COLOURS: Final = {
    OURS: "#0a84c6",
    MESSAGE_A_TOKEN: "#8f6fd6",
    SMG: "#d0701a",
    LITELLM: "#c4497d",
    DIRECT: "#6f8a3c",
}
LABELS: Final = {
    OURS: "Isthmus",
    MESSAGE_A_TOKEN: "a message a token",
    DIRECT: "no gateway",
}
_GROWTH_PACE: Final = round(1 / GROWTH_STEP_SECONDS)
_PACE: Final = round(1 / PACED_STEP_SECONDS)
_OTHER: Final = "#767f89"
_WIDTH: Final = 780
_LEFT, _RIGHT, _TOP = 60, 200, 64
_LINES_HEIGHT: Final = 270
_BAR_LEFT: Final = 150
_BAR, _BAR_STEP = 20, 34
# Ticks of an axis are these numbers times powers of ten.
_ROUND: Final = (1, 2, 5)
# The least distance of two labels, in pixels.
_LABEL_HEIGHT: Final = 17.0
# A bar is cut off if it is longer than so many times the next shorter one.
_OUTLIER: Final = 3.0
_STYLE: Final = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#767f89}"
    ".h{font-size:15px;font-weight:600}.n{text-anchor:end}.m{text-anchor:middle}"
    ".g{stroke:#767f89;stroke-opacity:.28}.b{font-weight:600}"
    "path{fill:none;stroke-linejoin:round;stroke-linecap:round}"
)


@dataclass(frozen=True)
class Cost:
    """CPU of a token in microseconds, at 64 paced streams.

    Attributes:
        subject: The gateway's name.
        edge: CPU of the gateway.
        worker: CPU of the processes behind the gateway.
    """

    subject: str
    edge: float
    worker: float

    @property
    def total(self) -> float:
        """CPU of gateway and worker."""
        return self.edge + self.worker


def growth(results: Results) -> dict[str, dict[int, float]]:
    """Returns the gateway's CPU of a token in microseconds, by subject and number of streams."""
    found: dict[str, dict[int, float]] = {}
    for scenario in results.scenarios():
        name, _, count = scenario.rpartition("-")
        for subject in results.subjects() if name == "growth" else ():
            value = median(results.values(scenario, subject, "edge_us_per_token").values())
            if value is not None:
                found.setdefault(subject, {})[int(count)] = value
    return found


def costs(results: Results) -> list[Cost]:
    """Returns the costs of the subjects, the lowest first."""
    found = []
    for subject in results.subjects():
        edge = median(results.values("paced", subject, "edge_us_per_token").values())
        worker = median(results.values("paced", subject, "worker_us_per_token").values())
        if worker is not None:
            found.append(Cost(subject, edge or 0.0, worker))
    return sorted(found, key=lambda cost: cost.total)


def svg(results: Results) -> str:
    """Returns the text of the SVG, with a chart for each measured scenario.

    Raises:
        ValueError: Neither scenario was measured.
    """
    lines, bars = growth(results), costs(results)
    parts: list[str] = []
    described: list[str] = []
    bottom = 0.0
    if lines:
        parts += _line_chart(lines)
        described += _line_sentences(lines)
        bottom = _TOP + _LINES_HEIGHT + 64
    if bars:
        parts += _bar_chart(bars, bottom)
        described += [
            f"{_label(cost.subject)}: {_number(cost.total)} microseconds a token with the worker."
            for cost in bars
        ]
        bottom += _TOP + _BAR_STEP * len(bars) + 20
    if not parts:
        raise ValueError("neither growth-* nor paced was measured")
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom:.0f}"'
            f' width="{_WIDTH}" height="{bottom:.0f}" role="img" aria-labelledby="title desc">',
            '<title id="title">CPU time of a streamed token</title>',
            f'<desc id="desc">{escape(" ".join(described))}</desc>',
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        )
    )


def _line_chart(lines: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    counts = sorted({count for line in lines.values() for count in line})
    values = [value for line in lines.values() for value in line.values()]
    ticks = _ticks(min(values), max(values))
    right, bottom = _WIDTH - _RIGHT, _TOP + _LINES_HEIGHT

    def across(count: int) -> float:
        return _between(math.log(count), math.log(counts[0]), math.log(counts[-1]), _LEFT, right)

    def up(value: float) -> float:
        return _between(math.log(value), math.log(ticks[0]), math.log(ticks[-1]), bottom, _TOP)

    yield _text(0, 18, "Gateway CPU for each streamed token, µs", "h")
    yield _text(
        0,
        38,
        f"by streams at once, each at {_GROWTH_PACE} tokens a second; both scales logarithmic",
    )
    for tick in ticks:
        y = up(tick)
        yield f'<line class="g" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 10, y + 4, _number(tick), "n")
    for count in counts:
        yield _text(across(count), bottom + 22, f"{count:,}", "m")
    yield _text((_LEFT + right) / 2, bottom + 42, "streams", "m")
    ends = []
    for subject, line in sorted(lines.items(), key=lambda item: item[0] == OURS):
        points = [(across(count), up(value)) for count, value in sorted(line.items())]
        colour, width = COLOURS.get(subject, _OTHER), 3 if subject == OURS else 2
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path d="M{path}" stroke="{colour}" stroke-width="{width}"/>'
        for x, y in points:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width + 1}" fill="{colour}"/>'
        x, y = points[-1]
        ends.append((y, x, subject, line[max(line)]))
    ends.sort()
    for y, (_, x, subject, value) in zip(_apart([end[0] for end in ends]), ends, strict=True):
        label = f"{_number(value)}  {_label(subject)}"
        yield _text(x + 12, y + 4, label, "b", COLOURS.get(subject, _OTHER))


def _bar_chart(bars: Sequence[Cost], top: float) -> Iterator[str]:
    longest = _longest_drawn([cost.total for cost in bars])
    room = _WIDTH - _BAR_LEFT - 100
    yield _text(0, top + 18, "Gateway and worker CPU for each token, µs", "h")
    yield _text(
        0, top + 38, f"64 streams, each at {_PACE} tokens a second; solid: gateway, pale: worker"
    )
    for row, cost in enumerate(bars):
        y = top + _TOP + row * _BAR_STEP
        colour = COLOURS.get(cost.subject, _OTHER)
        cut = cost.total > longest
        edge = min(cost.edge, longest) / longest * room
        whole = min(cost.total, longest) / longest * room
        emphasis = "n b" if cost.subject == OURS else "n"
        yield _text(_BAR_LEFT - 12, y + 15, _label(cost.subject), emphasis, colour)
        yield _bar(_BAR_LEFT, y, edge, colour)
        yield _bar(_BAR_LEFT + edge, y, whole - edge, colour, ' fill-opacity=".45"')
        end = _BAR_LEFT + whole
        if cut:
            yield from _break(end, y, colour)
            end += 14
        yield _text(end + 8, y + 15, _number(cost.total), "b", colour)


def _break(x: float, y: float, colour: str) -> Iterator[str]:
    """Draws two strokes that mark a bar as cut off."""
    for shift in (3, 9):
        path = f"M{x + shift:.1f} {y + _BAR + 2} l4 -{_BAR + 4}"
        yield f'<path d="{path}" stroke="{colour}" stroke-width="2"/>'


def _longest_drawn(totals: Sequence[float]) -> float:
    """Returns the length beyond which bars are cut off, so that short ones stay readable."""
    ordered = sorted(totals)
    longest = ordered[0]
    for total in ordered[1:]:
        # The shortest bar may be the source without a gateway, which is far below all others.
        if total > _OUTLIER * longest and longest != ordered[0]:
            break
        longest = total
    return longest


def _line_sentences(lines: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    for subject, line in lines.items():
        first, last = min(line), max(line)
        yield (
            f"{_label(subject)}: {_number(line[first])} microseconds a token at {first:,}"
            f" {'stream' if first == 1 else 'streams'}, {_number(line[last])} at {last:,}."
        )


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from the last one below `low` to the first one above `high`."""
    every = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in _ROUND
    ]
    first = max(index for index, tick in enumerate(every) if tick <= low)
    last = min(index for index, tick in enumerate(every) if tick >= high)
    return every[first : max(last, first + 1) + 1]


def _apart(heights: Sequence[float]) -> list[float]:
    """Moves labels down so that none covers another.

    Args:
        heights: Their positions, from top to bottom.
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + _LABEL_HEIGHT) if moved else height)
    return moved


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _text(x: float, y: float, text: str, classes: str = "", colour: str = "") -> str:
    kind = f' class="{classes}"' if classes else ""
    fill = f' style="fill:{colour}"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{fill} xml:space="preserve">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}"'
    return f'<rect {place} fill="{colour}"{more}/>'


def _label(subject: str) -> str:
    return LABELS.get(subject, subject)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    """Reads the results and writes the SVG."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    help_text = "gateways.json and growth.json of the benchmark"
    parser.add_argument("results", type=Path, nargs="+", help=help_text)
    parser.add_argument("svg", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    runs = [run for document in documents for run in document["runs"]]
    arguments.svg.parent.mkdir(parents=True, exist_ok=True)
    arguments.svg.write_text(svg(Results(runs)), encoding="utf-8")


if __name__ == "__main__":
    main()
