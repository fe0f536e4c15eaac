"""What each key may use of a model in a minute: so many requests, so many tokens.

Both are token buckets that refill continuously and hold one minute's allowance. A bucket is
kept as the time at which it will be full again, a whole number of nanoseconds: refilling costs
nothing, what is owed beyond an empty bucket is a later time, and a full bucket need not be kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Self, TypeAlias

from inference.config import ModelConfig
from inference.errors import InferenceError
from isthmus.v1.usage_pb2 import RateLimit, RateLimits
from keys import KeyStore

_WINDOW_NS: Final = 60 * 10**9
_ABBREVIATIONS: Final = {"requests": "RPM", "tokens": "TPM"}


class RateLimiter:
    """Counts for one model; callers without a key share one allowance.

    Args:
        config: The model's allowance of each key.
        keys: Where a key may have an allowance of its own, which then counts instead.
        clock: Nanoseconds that never go back.
    """

    def __init__(
        self,
        config: ModelConfig,
        keys: KeyStore | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._config = config
        self._keys = keys
        self._clock = clock
        # By principal and "requests" or "tokens".
        self._kept: dict[tuple[str, str], _Bucket] = {}
        self._swept = clock()

    def check(self, principal: str) -> None:
        """Refuses who has nothing left before the request waits and is tokenized; takes nothing.

        Raises:
            InferenceError: rate_limit_exceeded.
        """
        self._check(self._buckets(principal), tokens=0)

    def charge(self, principal: str, tokens: int = 0) -> Charge:
        """Takes one request and `tokens` tokens; on leaving, settles to what was really used.

        Raises:
            InferenceError: On entering, rate_limit_exceeded; nothing is taken then.
        """
        return Charge(self, self._buckets(principal), tokens)

    def _check(self, buckets: _Buckets, tokens: int) -> None:
        if not buckets:
            return
        now = self._clock()
        needs = {"requests": 1, "tokens": max(tokens, 1)}
        waits = {kind: bucket.wait_ns(needs[kind], now) for kind, bucket in buckets.items()}
        kind = max(waits, key=waits.__getitem__)
        if not waits[kind]:
            return
        limit = buckets[kind].limit
        retry_after_ms = _milliseconds(waits[kind])
        raise InferenceError(
            "rate_limit_exceeded",
            f"Rate limit reached for {self._config.id} on {kind} per min "
            f"({_ABBREVIATIONS[kind]}): Limit {limit}, "
            f"Used {limit - buckets[kind].remaining(now)}, Requested {needs[kind]}. "
            f"Please try again in {retry_after_ms / 1000:g}s.",
            type=kind,
            retry_after_ms=retry_after_ms,
            rate_limits=_told(buckets, now),
        )

    def _reserve(self, buckets: _Buckets, tokens: int) -> None:
        bucket = buckets.get("tokens")
        if bucket is not None and bucket.wait_ns(tokens, self._clock()):
            # Who comes back for the tokens needs another request as well.
            self._check(buckets, tokens)
        self._take(buckets, requests=0, tokens=tokens)

    def _take(self, buckets: _Buckets, requests: int, tokens: int) -> None:
        now = self._clock()
        units = {"requests": requests, "tokens": tokens}
        for kind, bucket in buckets.items():
            bucket.take(units[kind], now)

    def _buckets(self, principal: str) -> _Buckets:
        """The principal's buckets with the limits that hold now; none where it has no limits."""
        self._sweep()
        key = self._keys.find(principal) if self._keys is not None and principal else None
        config = self._config
        requests = (key and key.requests_per_minute) or config.requests_per_minute
        tokens = (key and key.tokens_per_minute) or config.tokens_per_minute
        buckets: _Buckets = {}
        if requests is None and tokens is None:
            return buckets
        for kind, limit in (("requests", requests), ("tokens", tokens)):
            if limit is not None:
                buckets[kind] = self._kept.setdefault((principal, kind), _Bucket())
                buckets[kind].limit = limit
        return buckets

    def _sweep(self) -> None:
        """Drops full buckets once a window; one in use must stay, for it is settled later."""
        now = self._clock()
        if now - self._swept > _WINDOW_NS:
            self._swept = now
            self._kept = {
                name: bucket
                for name, bucket in self._kept.items()
                if bucket.charges or bucket.full_at > now
            }


class Charge:
    """What one call takes while it runs.

    Attributes:
        reserved_tokens: What it has set aside.
        used_tokens: What it has really used so far; the call keeps it up to date.
    """

    __slots__ = ("_buckets", "_limiter", "reserved_tokens", "used_tokens")

    def __init__(self, limiter: RateLimiter, buckets: _Buckets, tokens: int) -> None:
        self._limiter = limiter
        self._buckets = buckets
        self.reserved_tokens = tokens
        self.used_tokens = 0

    def __enter__(self) -> Self:
        if self._buckets:
            self._limiter._check(self._buckets, self.reserved_tokens)
            self._limiter._take(self._buckets, requests=1, tokens=self.reserved_tokens)
            for bucket in self._buckets.values():
                bucket.charges += 1
        return self

    def __exit__(self, *_: object) -> None:
        if self._buckets:
            unsettled = self.used_tokens - self.reserved_tokens
            self._limiter._take(self._buckets, requests=0, tokens=unsettled)
            for bucket in self._buckets.values():
                bucket.charges -= 1

    def reserve(self, tokens: int) -> None:
        """Sets aside tokens that were not known of when the request was taken.

        Raises:
            InferenceError: rate_limit_exceeded; no tokens are taken then, the request stays taken.
        """
        if self._buckets:
            self._limiter._reserve(self._buckets, tokens)
        self.reserved_tokens += tokens

    def rate_limits(self) -> RateLimits | None:
        """What is left now; None where nothing is limited."""
        return _told(self._buckets, self._limiter._clock()) if self._buckets else None


class _Bucket:
    """One allowance of one principal."""

    __slots__ = ("charges", "full_at", "limit")

    def __init__(self) -> None:
        self.charges = 0
        self.full_at = 0
        self.limit = 1

    def wait_ns(self, units: int, now: int) -> int:
        """Until there are `units`; for more than a whole bucket, until it is full."""
        return max(0, self._owed(now) + self._cost(min(units, self.limit)) - _WINDOW_NS)

    def take(self, units: int, now: int) -> None:
        """Takes even what is not there; a negative number gives back."""
        self.full_at = now + self._owed(now) + self._cost(units)

    def remaining(self, now: int) -> int:
        """Whole units; negative where more was taken than was there."""
        return (_WINDOW_NS - self._owed(now)) * self.limit // _WINDOW_NS

    def told(self, now: int) -> RateLimit:
        """As callers see it."""
        return RateLimit(
            limit=self.limit,
            remaining=max(0, self.remaining(now)),
            reset_ms=_milliseconds(self._owed(now)),
        )

    def _owed(self, now: int) -> int:
        return max(0, self.full_at - now)

    def _cost(self, units: int) -> int:
        return units * _WINDOW_NS // self.limit


_Buckets: TypeAlias = dict[str, _Bucket]


def _told(buckets: _Buckets, now: int) -> RateLimits:
    return RateLimits(**{kind: bucket.told(now) for kind, bucket in buckets.items()})


def _milliseconds(nanoseconds: int) -> int:
    """Rounded up: who waits that long has waited long enough."""
    return -(-nanoseconds // 10**6)
