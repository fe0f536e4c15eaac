"""Rate limits of requests and tokens, with a clock that only the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.exchange.machine import keep_lowest
from edge.middleware.serve import duration, rate_limit_headers
from inference.config import ModelConfig
from inference.errors import InferenceError
from inference.rate_limits import RateLimiter, estimated_tokens
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import TokenIds
from isthmus.v1.usage_pb2 import RateLimit, RateLimits
from keys import ConfigError, KeyStore, create_key


class Clock:
    def __init__(self) -> None:
        self.now = 123_456_789_012_345

    def __call__(self) -> int:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def model(requests: int | None = None, tokens: int | None = None) -> ModelConfig:
    return ModelConfig(
        id="m", engine="scripted", requests_per_minute=requests, tokens_per_minute=tokens
    )


def use(limiter: RateLimiter, principal: str = "a", reserved: int = 0, used: int = 0) -> RateLimits:
    """Runs a whole call; returns the limits after it."""
    with limiter.charge(principal, reserved) as charge:
        charge.used_tokens = used
    left = charge.rate_limits()
    assert left is not None
    return left


def refused(limiter: RateLimiter, principal: str = "a", tokens: int = 0) -> InferenceError:
    with pytest.raises(InferenceError) as caught, limiter.charge(principal, tokens):
        pass
    assert caught.value.reason == "rate_limit_exceeded"
    return caught.value


def seen(limit: RateLimit) -> tuple[int, int, int]:
    return limit.limit, limit.remaining, limit.reset_ms


def test_requests_refill_one_by_one(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=6), clock=clock)
    left = [use(limiter) for _ in range(6)]
    assert [seen(limits.requests) for limits in left] == [
        (6, 5 - n, 10_000 * (n + 1)) for n in range(6)
    ]
    assert not left[0].HasField("tokens")
    for _ in range(3):  # a refusal costs nothing
        error = refused(limiter)
        assert (error.type, error.retry_after_ms) == ("requests", 10_000)
    clock.pass_(9.9995)
    assert refused(limiter).retry_after_ms == 1  # rounded up: waiting that long is enough
    clock.pass_(0.0005)
    assert seen(use(limiter).requests) == (6, 0, 60_000)
    clock.pass_(3600)
    assert seen(use(limiter).requests) == (6, 5, 10_000)


@pytest.mark.parametrize("limit", [1, 3, 7, 59, 60, 1000, 30_001, 2_000_000])
def test_counts_are_exact_for_every_limit(clock: Clock, limit: int) -> None:
    limiter = RateLimiter(model(tokens=limit), clock=clock)
    third = limit // 3
    for taken in range(1, 4):
        left = use(limiter, used=third).tokens.remaining
        assert left == limit - taken * third
    clock.pass_(60)
    assert use(limiter, used=limit).tokens.remaining == 0
    error = refused(limiter, tokens=limit)
    assert error.retry_after_ms is not None
    clock.pass_(error.retry_after_ms / 1000)
    use(limiter, reserved=limit)


def test_finished_call_is_charged_for_used_not_reserved_tokens(clock: Clock) -> None:
    limiter = RateLimiter(model(tokens=600), clock=clock)
    with limiter.charge("a", 500) as charge:
        during = charge.rate_limits()
        assert during is not None
        assert seen(during.tokens) == (600, 100, 50_000)
        error = refused(limiter, tokens=101)
        assert (error.type, error.retry_after_ms) == ("tokens", 100)
        assert error.rate_limits == during
        assert error.message == (
            "Rate limit reached for m on tokens per min (TPM): Limit 600, Used 500, "
            "Requested 101. Please try again in 0.1s."
        )
        charge.used_tokens = 30
    after = charge.rate_limits()
    assert after is not None
    assert seen(after.tokens) == (600, 570, 3_000)


def test_tokens_may_be_reserved_during_a_call(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=2, tokens=600), clock=clock)
    with limiter.charge("a") as charge:
        charge.reserve(500)
        with pytest.raises(InferenceError) as caught:
            charge.reserve(101)
        assert (caught.value.type, caught.value.retry_after_ms) == ("tokens", 100)
        charge.reserve(100)
        assert charge.reserved_tokens == 600
        charge.used_tokens = 30
    left = charge.rate_limits()
    assert left is not None
    assert (seen(left.requests), seen(left.tokens)) == ((2, 1, 30_000), (600, 570, 3_000))
    with limiter.charge("a") as charge, pytest.raises(InferenceError) as caught:
        charge.reserve(571)
    # The tokens refill within 0.1 s, but a retry also costs a request, which takes 30 s.
    assert (caught.value.type, caught.value.retry_after_ms) == ("requests", 30_000)
    assert caught.value.rate_limits == charge.rate_limits()
    assert seen(caught.value.rate_limits.tokens) == (600, 570, 3_000)


def test_tokens_are_reserved_although_the_call_took_the_last_request(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=1, tokens=600), clock=clock)
    with limiter.charge("a") as charge:
        charge.reserve(600)
        left = charge.rate_limits()
    assert left is not None
    assert (left.requests.remaining, left.tokens.remaining) == (0, 0)


def test_reserved_tokens_are_nothing_to_a_limit_of_requests_alone(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=6), clock=clock)
    with limiter.charge("a") as charge:
        charge.reserve(10**9)
        charge.used_tokens = 10**9
    left = charge.rate_limits()
    assert left is not None
    assert seen(left.requests) == (6, 5, 10_000)
    assert not left.HasField("tokens")


def test_settled_call_is_not_settled_again_at_its_end(clock: Clock) -> None:
    limiter = RateLimiter(model(tokens=600), clock=clock)
    with limiter.charge("a", 500) as charge:
        charge.used_tokens = 30
        charge.settle()
        during = charge.rate_limits()
    assert during is not None
    assert during.tokens.remaining == 570
    assert charge.rate_limits() == during


def test_request_refills_after_exactly_its_share_of_the_minute(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=1), clock=clock)
    use(limiter)
    clock.now += 60 * 10**9 - 1
    refused(limiter)
    clock.now += 1
    use(limiter)


def test_failed_call_is_charged_for_used_tokens(clock: Clock) -> None:
    limiter = RateLimiter(model(tokens=600), clock=clock)
    with pytest.raises(RuntimeError), limiter.charge("a", 500) as charge:
        charge.used_tokens = 60
        raise RuntimeError
    after = charge.rate_limits()
    assert after is not None
    assert after.tokens.remaining == 540


def test_use_beyond_the_limit_delays_the_next_call(clock: Clock) -> None:
    limiter = RateLimiter(model(tokens=60), clock=clock)
    assert seen(use(limiter, used=90).tokens) == (60, 0, 90_000)
    with pytest.raises(InferenceError) as caught:
        limiter.check("a")
    assert caught.value.retry_after_ms == 31_000
    assert "Limit 60, Used 90, Requested 1." in caught.value.message


def test_call_larger_than_the_limit_runs_when_the_bucket_is_full(clock: Clock) -> None:
    limiter = RateLimiter(model(tokens=60), clock=clock)
    assert use(limiter, used=1).tokens.remaining == 59
    assert refused(limiter, tokens=1000).retry_after_ms == 1000
    clock.pass_(1)
    assert seen(use(limiter, reserved=1000, used=70).tokens) == (60, 0, 70_000)


def test_refusal_has_the_longer_of_two_waits(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=60, tokens=60), clock=clock)
    for number in range(60):
        use(limiter, used=120 if number == 59 else 0)
    error = refused(limiter)
    assert (error.type, error.retry_after_ms) == ("tokens", 61_000)


def test_principals_do_not_share_an_allowance(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=1), clock=clock)
    use(limiter, "a")
    refused(limiter, "a")
    use(limiter, "b")
    use(limiter, "")
    refused(limiter, "")


def test_calls_without_a_limit_are_not_counted(clock: Clock) -> None:
    limiter = RateLimiter(model(), clock=clock)
    limiter.check("a")
    with limiter.charge("a", 10**9) as charge:
        charge.used_tokens = 10**9
    assert charge.rate_limits() is None
    assert not limiter._kept


def test_full_buckets_are_dropped_unless_in_use(clock: Clock) -> None:
    limiter = RateLimiter(model(requests=60, tokens=60), clock=clock)
    with limiter.charge("long", 0) as charge:
        for number in range(1000):
            use(limiter, str(number), used=1)
        use(limiter, "owes", used=600)
        clock.pass_(61)
        limiter.check("x")
        assert {name for name, _ in limiter._kept} == {"long", "owes", "x"}
        charge.used_tokens = 120
    refused(limiter, "long")
    clock.pass_(59)
    use(limiter, "y", used=1)
    clock.pass_(1)
    limiter.check("x")
    assert "y" in {name for name, _ in limiter._kept}  # a sweep comes once a minute
    clock.pass_(3600)
    limiter.check("x")
    assert {name for name, _ in limiter._kept} == {"x"}


def test_a_key_may_have_its_own_allowance(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    usual, _ = create_key(path, "usual")
    more, _ = create_key(path, "more", requests_per_minute=500)
    less, _ = create_key(path, "less", tokens_per_minute=7)
    limiter = RateLimiter(model(requests=60), KeyStore(path), clock)
    limits = {entry.name: use(limiter, entry.id) for entry in (usual, more, less)}
    assert [left.requests.limit for left in limits.values()] == [60, 500, 60]
    assert [left.tokens.limit for left in limits.values()] == [0, 0, 7]


@pytest.mark.parametrize("member", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_allowance_is_at_least_one(tmp_path: Path, member: str, value: int) -> None:
    allowance: dict[str, Any] = {member: value}
    with pytest.raises(ConfigError, match=member):
        ModelConfig(id="m", engine="scripted", **allowance)
    with pytest.raises(OSError, match="at least 1"):
        create_key(tmp_path / "keys.json", "x", **allowance)
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (17, "17ms"),
        (999, "999ms"),
        (1000, "1s"),
        (8640, "8.64s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (72_172, "1m12.172s"),
    ],
)
def test_durations_have_openais_format(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_headers_have_only_the_configured_limits() -> None:
    assert rate_limit_headers(RateLimits()) == {}
    limits = RateLimits(tokens=RateLimit(limit=60, remaining=0, reset_ms=90_000))
    assert rate_limit_headers(limits) == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }


def test_lowest_limits_of_several_calls_are_kept() -> None:
    def limits(requests: int, tokens: int) -> RateLimits:
        return RateLimits(
            requests=RateLimit(limit=9, remaining=requests),
            tokens=RateLimit(limit=99, remaining=tokens),
        )

    kept = RateLimits()
    for other in (RateLimits(), limits(5, 50), limits(4, 60), limits(6, 40), RateLimits()):
        keep_lowest(kept, other)
    assert kept == limits(4, 40)


def test_embedding_is_estimated_by_its_characters_up_to_the_context() -> None:
    inputs = [EmbedInput(text="x" * 9), EmbedInput(text="y" * 1000)]
    inputs.append(EmbedInput(token_ids=TokenIds(ids=[1] * 4)))
    assert estimated_tokens(EmbedRequest(inputs=inputs), 50) == 3 + 50 + 4
