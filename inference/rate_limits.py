"""Limits on the requests and tokens per minute of each key and model.

Each key has two token buckets per model, one for requests and one for tokens. A bucket holds one
minute's allowance and refills continuously. It is stored as a single number, `full_at`: the time
at which the bucket will be full again, in nanoseconds of a monotonic clock.

| question                    | computed from `full_at`                                          |
|-----------------------------|------------------------------------------------------------------|
| how much is missing?        | `full_at - now`, as time; nothing if that is negative            |
| how much is left?           | one minute minus what is missing, times limit per minute         |
| what does taking units do?  | moves `full_at` later by `units / limit` of a minute             |
| what does returning do?     | moves `full_at` earlier                                          |
| may a full bucket be dropped? | yes: a new one is full as well                                 |

So refilling needs no work, and an overdrawn bucket has a `full_at` of more than a minute from now.
All arithmetic is in integers, which avoids rounding errors.

A call uses its key's allowance in four steps:

| step                | requests | tokens                          | may refuse                   |
|---------------------|----------|---------------------------------|------------------------------|
| `RateLimiter.check` | -        | -                               | if either bucket is empty    |
| enter `charge`      | takes 1  | takes the estimate (embeddings) | yes, taking nothing          |
| `Charge.reserve`    | -        | takes prompt and max_tokens     | yes; the request stays taken |
| `Charge.settle`     | -        | corrects to `used_tokens`       | never; may overdraw          |

Without the reservation, many concurrent calls could pass on the same remaining allowance.

Several fronts of one model count together: their buckets are in a file (rate_table.py), which is
locked from each check to the taking that follows from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Self

from inference.config import ModelConfig
from inference.errors import InferenceError
from inference.rate_buckets import WINDOW_NS, Bucket, SharedBucket, milliseconds
from inference.rate_table import RateTable
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.usage_pb2 import RateLimits
from keys import KeyStore

_ABBREVIATIONS: Final = {"requests": "RPM", "tokens": "TPM"}
# Characters of English text for each token, by OpenAI's rule of thumb.
_CHARACTERS_A_TOKEN: Final = 4
# The lock of buckets that no other process has.
_UNSHARED: Final = nullcontext()


class RateLimiter:
    """The buckets of one model; all callers without a key share one allowance.

    Args:
        config: The model's allowance for each key.
        keys: The configured keys; a key's own allowance replaces the model's.
        clock: Monotonic clock in nanoseconds.
        table: The buckets that this process shares with others; None for its own.
    """

    def __init__(
        self,
        config: ModelConfig,
        keys: KeyStore | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        table: RateTable | None = None,
    ) -> None:
        self._config = config
        self._keys = keys
        self._clock = clock
        self._table = table
        # Buckets by principal and "requests" or "tokens".
        self._kept: dict[tuple[str, str], Bucket] = {}
        self._swept = clock()
        self._unlimited = _Allowance(config.id, {}, clock, _UNSHARED)

    def check(self, principal: str) -> None:
        """Refuses a principal that has no request or no token left; takes nothing.

        Raises:
            InferenceError: rate_limit_exceeded.
        """
        self._allowance(principal).check(tokens=0)

    def charge(self, principal: str, tokens: int = 0) -> Charge:
        """Takes one request and `tokens` tokens; on exit, corrects to the tokens used.

        Raises:
            InferenceError: On entering, rate_limit_exceeded; nothing is taken then.
        """
        return Charge(self._allowance(principal), tokens)

    def _allowance(self, principal: str) -> _Allowance:
        """The principal's buckets with the current limits; empty without limits."""
        if self._kept:
            self._sweep()
        key = self._keys.find(principal) if self._keys is not None and principal else None
        config = self._config
        requests = (key and key.requests_per_minute) or config.requests_per_minute
        tokens = (key and key.tokens_per_minute) or config.tokens_per_minute
        if requests is None and tokens is None:
            return self._unlimited
        buckets: dict[str, Bucket] = {}
        for kind, limit in (("requests", requests), ("tokens", tokens)):
            if limit is not None:
                buckets[kind] = self._bucket(principal, kind)
                buckets[kind].limit = limit
        return _Allowance(config.id, buckets, self._clock, self._table or _UNSHARED)

    def _bucket(self, principal: str, kind: str) -> Bucket:
        if self._table is not None:
            return SharedBucket(self._table, principal, kind)
        return self._kept.setdefault((principal, kind), Bucket())

    def _sweep(self) -> None:
        """Drops full buckets once a window, except those that a running call will settle."""
        now = self._clock()
        if now - self._swept > WINDOW_NS:
            self._swept = now
            self._kept = {
                name: bucket
                for name, bucket in self._kept.items()
                if bucket.charges or bucket.full_at > now
            }


class _Allowance:
    """The buckets of one principal, by "requests" and "tokens"; a kind without limit is absent.

    Whoever checks and then takes holds `lock`.
    """

    __slots__ = ("_clock", "_model", "buckets", "lock")

    def __init__(
        self,
        model: str,
        buckets: dict[str, Bucket],
        clock: Callable[[], int],
        lock: AbstractContextManager[None],
    ) -> None:
        self._model = model
        self._clock = clock
        self.buckets = buckets
        self.lock = lock

    def check(self, tokens: int) -> None:
        """Refuses unless there is one request and `tokens` tokens (at least one); takes nothing."""
        if not self.buckets:
            return
        now = self._clock()
        needs = {"requests": 1, "tokens": max(tokens, 1)}
        waits = {kind: bucket.wait_ns(needs[kind], now) for kind, bucket in self.buckets.items()}
        kind = max(waits, key=waits.__getitem__)
        if not waits[kind]:
            return
        bucket = self.buckets[kind]
        retry_after_ms = milliseconds(waits[kind])
        raise InferenceError(
            "rate_limit_exceeded",
            f"Rate limit reached for {self._model} on {kind} per min "
            f"({_ABBREVIATIONS[kind]}): Limit {bucket.limit}, "
            f"Used {bucket.limit - bucket.remaining(now)}, Requested {needs[kind]}. "
            f"Please try again in {retry_after_ms / 1000:g}s.",
            type=kind,
            retry_after_ms=retry_after_ms,
            rate_limits=self.left(),
        )

    def reserve(self, tokens: int) -> None:
        """Takes tokens for a request that was taken before, or raises InferenceError."""
        with self.lock:
            bucket = self.buckets.get("tokens")
            if bucket is not None and bucket.wait_ns(tokens, self._clock()):
                # A retry takes another request as well, so both buckets are checked.
                self.check(tokens)
            self.take(requests=0, tokens=tokens)

    def take(self, requests: int, tokens: int) -> None:
        """Takes units, even if this overdraws a bucket; returns negative units to it."""
        if not self.buckets:
            return
        now = self._clock()
        units = {"requests": requests, "tokens": tokens}
        for kind, bucket in self.buckets.items():
            bucket.take(units[kind], now)

    def left(self) -> RateLimits | None:
        """Limits and remaining units for the caller; None without limits."""
        if not self.buckets:
            return None
        now = self._clock()
        return RateLimits(**{kind: bucket.left(now) for kind, bucket in self.buckets.items()})


class Charge:
    """The allowance that one call takes while it runs.

    Attributes:
        reserved_tokens: Tokens taken from the bucket so far.
        used_tokens: Tokens used so far; the call updates it.
    """

    __slots__ = ("_allowance", "reserved_tokens", "used_tokens")

    def __init__(self, allowance: _Allowance, tokens: int) -> None:
        self._allowance = allowance
        self.reserved_tokens = tokens
        self.used_tokens = 0

    def __enter__(self) -> Self:
        if self._allowance.buckets:
            with self._allowance.lock:
                self._allowance.check(self.reserved_tokens)
                self._allowance.take(requests=1, tokens=self.reserved_tokens)
            for bucket in self._allowance.buckets.values():
                bucket.charges += 1
        return self

    def __exit__(self, *_: object) -> None:
        if self._allowance.buckets:
            self.settle()
            for bucket in self._allowance.buckets.values():
                bucket.charges -= 1

    def reserve(self, tokens: int) -> None:
        """Takes tokens that were not yet counted when the request was taken.

        Raises:
            InferenceError: rate_limit_exceeded; takes no tokens, and the request stays taken.
        """
        if self._allowance.buckets:
            self._allowance.reserve(tokens)
        self.reserved_tokens += tokens

    def settle(self) -> None:
        """Takes or returns the difference between used and reserved tokens."""
        with self._allowance.lock:
            self._allowance.take(requests=0, tokens=self.used_tokens - self.reserved_tokens)
        self.reserved_tokens = self.used_tokens

    def rate_limits(self) -> RateLimits | None:
        """Current limits and remaining units; None without limits."""
        return self._allowance.left()


def estimated_tokens(request: EmbedRequest, context_length: int) -> int:
    """Estimated tokens of all inputs, from 1 to the context for each."""
    counts = (
        -(-len(text) // _CHARACTERS_A_TOKEN) if (text := item.text) else len(item.token_ids.ids)
        for item in request.inputs
    )
    return sum(min(count, context_length) for count in counts)
