"""Figures of a process in Prometheus' text format.

What changes with every request must cost little. So an observation only appends the value to a
list, a twentieth of the cost of prometheus-client's own; `fold`, which every program calls each
second, sorts the list and counts its values by bucket. Families of prometheus-client are made when
somebody asks. What has a current value, such as a queue, is read then at no cost to requests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Series of one family. What has further values of its labels is counted in a last series, whose
# labels are all OTHER.
MAX_SERIES: Final = 500
OTHER: Final = "other"
# Buckets of times for which no specification has any, in seconds.
SECONDS_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount


class Histogram:
    """How many values were in each bucket, and their sum.

    Args:
        bounds: Upper bounds of the buckets, ascending. One more bucket has what is above the last.

    Attributes:
        observe: Adds a value.
        counts: Values up to each bound, and all values, as of the last `fold`.
        sum: The sum of all values, likewise.
    """

    __slots__ = ("_bounds", "_new", "counts", "observe", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._new: list[float] = []
        self.observe: Callable[[float], None] = self._new.append
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def fold(self) -> None:
        """Counts the new values; also in another thread than that which observes."""
        count = len(self._new)
        new = sorted(self._new[:count])
        del self._new[:count]
        for number, bound in enumerate(self._bounds):
            self.counts[number] += bisect_right(new, bound)
        self.counts[-1] += count
        self.sum += sum(new)


Cell = TypeVar("Cell", Counter, Histogram)


class _Family(Generic[Cell]):
    """All series of one name.

    Args:
        name: The name in Prometheus, a counter's without "_total".
        text: What it counts, with the unit.
        labels: Names of the labels.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._cells: dict[tuple[str, ...], Cell] = {}

    def of(self, *values: str) -> Cell:
        """The series with these label values, in the order of the labels."""
        cell = self._cells.get(values)
        if cell is None:
            if len(self._cells) >= MAX_SERIES:
                values = (OTHER,) * len(self._labels)
            cell = self._cells.setdefault(values, self._cell())
        return cell

    def _cell(self) -> Cell:
        raise NotImplementedError

    def collect(self) -> Metric:
        """The family as it is now."""
        raise NotImplementedError


class Counters(_Family[Counter]):
    """Counters of one name."""

    def _cell(self) -> Counter:
        return Counter()

    def collect(self) -> Metric:
        values = [(labels, cell.value) for labels, cell in list(self._cells.items())]
        return counter(self._name, self._text, values, self._labels)


class Histograms(_Family[Histogram]):
    """Histograms of one name, with the same buckets."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, text, labels)
        self._bounds = bounds
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]

    def _cell(self) -> Histogram:
        return Histogram(self._bounds)

    def fold(self) -> None:
        """Counts the new values of all series."""
        for cell in list(self._cells.values()):
            cell.fold()

    def collect(self) -> Metric:
        metric = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in list(self._cells.items()):
            cell.fold()
            buckets = list(zip(self._names, cell.counts, strict=True))
            metric.add_metric(values, buckets=buckets, sum_value=cell.sum)
        return metric


Values = Iterable[tuple[Sequence[str], float]]
"""Current values, each with the values of its labels."""


def gauge(name: str, text: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """A family of values that rise and fall."""
    return _with(GaugeMetricFamily(name, text, labels=labels), values)


def counter(name: str, text: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """A family of counts that are kept elsewhere; `name` is without "_total"."""
    return _with(CounterMetricFamily(name, text, labels=labels), values)


def _with(metric: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for label_values, value in values:
        metric.add_metric(label_values, value)
    return metric


def one(value: float) -> Values:
    """The value of a family without labels."""
    return (((), value),)


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposition(metrics: Iterable[Metric]) -> bytes:
    """The text that Prometheus reads, of type CONTENT_TYPE."""
    return generate_latest(_Collected(metrics))
