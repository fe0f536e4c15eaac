"""Token buckets: how much of an allowance is left (rate_limits.py has the arithmetic)."""

from __future__ import annotations

from typing import Final

from inference.rate_table import RateTable, bucket_of
from isthmus.v1.usage_pb2 import RateLimit

WINDOW_NS: Final = 60 * 10**9


class Bucket:
    """One allowance of one principal.

    Attributes:
        charges: Number of running calls that use it.
        full_at: When it is full again, in nanoseconds of a monotonic clock.
        limit: Units per minute.
    """

    __slots__ = ("charges", "full_at", "limit")

    limit: int

    def __init__(self) -> None:
        self.charges = 0
        self.full_at = 0

    def wait_ns(self, units: int, now: int) -> int:
        """Nanoseconds until the bucket holds `units` or, if that is above its size, is full."""
        return max(0, self._missing(now) + self._cost(min(units, self.limit)) - WINDOW_NS)

    def take(self, units: int, now: int) -> None:
        self.full_at = now + self._missing(now) + self._cost(units)

    def remaining(self, now: int) -> int:
        """Whole units left; negative if overdrawn."""
        return (WINDOW_NS - self._missing(now)) * self.limit // WINDOW_NS

    def left(self, now: int) -> RateLimit:
        return RateLimit(
            limit=self.limit,
            remaining=max(0, self.remaining(now)),
            reset_ms=milliseconds(self._missing(now)),
        )

    def _missing(self, now: int) -> int:
        return max(0, self.full_at - now)

    def _cost(self, units: int) -> int:
        return units * WINDOW_NS // self.limit


class SharedBucket(Bucket):
    """A bucket whose `full_at` is in a table; the other members are those of one call."""

    __slots__ = ("_name", "_table")

    def __init__(self, table: RateTable, principal: str, kind: str) -> None:
        self._table = table
        self._name = bucket_of(principal, kind)
        self.charges = 0

    @property
    def full_at(self) -> int:
        return self._table.full_at(self._name)

    @full_at.setter
    def full_at(self, full_at: int) -> None:
        self._table.set_full_at(self._name, full_at)


def milliseconds(nanoseconds: int) -> int:
    """Rounds up, so that a caller that waits this long has waited long enough."""
    return -(-nanoseconds // 10**6)
