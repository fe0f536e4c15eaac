"""The rate limits of an API key as OpenAI's `x-ratelimit-*` headers."""

from __future__ import annotations

from isthmus.v1.usage_pb2 import RateLimits


def rate_limit_headers(limits: RateLimits) -> dict[str, str]:
    """The headers `-limit-`, `-remaining-` and `-reset-` of each limit; none for an absent one."""
    headers = {}
    for kind, limit in (("requests", limits.requests), ("tokens", limits.tokens)):
        if limits.HasField(kind):
            headers[f"x-ratelimit-limit-{kind}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(limit.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(limit.reset_ms)
    return headers


def keep_lowest(limits: RateLimits, others: RateLimits) -> None:
    """Copies each limit of `others` into `limits` that has as little remaining, or less.

    The calls of one request share the key's allowance, so the lowest remainder is the latest.
    """
    for kind in ("requests", "tokens"):
        kept, other = getattr(limits, kind), getattr(others, kind)
        if others.HasField(kind) and (
            not limits.HasField(kind) or other.remaining <= kept.remaining
        ):
            kept.CopyFrom(other)


def duration(milliseconds: int) -> str:
    """A time in OpenAI's notation: 17ms, 1s, 8.64s, 6m0s."""
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
