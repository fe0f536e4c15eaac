"""Rate limits of a key: counted by the inference service, reported over REST and gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inference.config import AliasConfig, ModelConfig
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse, Stopping
from isthmus.v1.usage_pb2 import RateLimits
from keys import Entry, create_key
from tests.conftest import EMBEDDING, Stack, StartStack, eventually

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBED = "/v1/embeddings"
TWO_WORDS = {
    CHAT: {"messages": [{"role": "user", "content": "two words"}]},
    TEXT: {"prompt": "two words"},
    EMBED: {"input": "two words"},
}
SLOW = {"step_seconds": 0.01, "tokens": 4000}


def text_model(requests: int | None = None, tokens: int | None = None, **script: Any) -> Any:
    return ModelConfig(
        id="scripted",
        engine="scripted",
        aliases=(AliasConfig(name="gpt-4"),),
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        engine_args=script.get("script", {}),
    )


def embedding_model(requests: int | None = None, tokens: int | None = None) -> ModelConfig:
    return ModelConfig(
        id="scripted-embedding",
        engine="scripted-embedding",
        requests_per_minute=requests,
        tokens_per_minute=tokens,
    )


def stop_clocks(stack: Stack) -> Stack:
    """Stops the clocks of the rate limiters: no allowance refills, so every count is exact."""
    for served in stack.server.registry.models:
        now = served.rate_limiter._clock()
        served.rate_limiter._clock = lambda now=now: now
    return stack


@dataclass
class Answer:
    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def limits(self) -> dict[str, str]:
        """The rate limit headers without their common prefix."""
        prefix = "x-ratelimit-"
        return {
            name.lower().removeprefix(prefix): value
            for name, value in self.headers.items()
            if name.lower().startswith(prefix)
        }

    def remaining(self, kind: str) -> int:
        return int(self.limits[f"remaining-{kind}"])


async def ask(stack: Stack, path: str = CHAT, key: str = "none", **parameters: Any) -> Answer:
    model = "scripted-embedding" if path == EMBED else "scripted"
    async with stack.http.post(
        path,
        json={"model": model} | TWO_WORDS[path] | parameters,
        headers={"authorization": f"Bearer {key}"},
    ) as response:
        body = await response.read()
        document = json.loads(body) if body.startswith(b"{") else {}
        return Answer(response.status, document, response.headers)


@pytest.mark.parametrize(
    ("path", "stream"), [(CHAT, False), (CHAT, True), (TEXT, False), (TEXT, True), (EMBED, False)]
)
async def test_rate_limit_headers_count_down_until_a_429(
    start_stack: StartStack, path: str, stream: bool
) -> None:
    stack = stop_clocks(await start_stack(text_model(2, 6000), embedding_model(2, 6000)))
    parameters = {} if path == EMBED else {"stream": stream, "max_tokens": 16}
    tokens = 2 if path == EMBED else 18
    for asked, reset in ((1, "30s"), (2, "1m0s")):
        answer = await ask(stack, path, **parameters)
        assert answer.status == 200
        assert answer.limits == {
            "limit-requests": "2",
            "limit-tokens": "6000",
            "remaining-requests": str(2 - asked),
            "remaining-tokens": str(6000 - asked * tokens),
            "reset-requests": reset,
            "reset-tokens": f"{asked * tokens * 10}ms",
        }
    for _ in range(2):
        refused = await ask(stack, path, **parameters)
        assert refused.status == 429
        assert refused.limits == answer.limits
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["retry-after-ms"] == "30000"
        model = "scripted-embedding" if path == EMBED else "scripted"
        assert refused.body["error"] == {
            "message": f"Rate limit reached for {model} on requests per min (RPM): Limit 2, "
            "Used 2, Requested 1. Please try again in 30s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }


@pytest.mark.parametrize("path", [CHAT, TEXT, EMBED])
async def test_request_beyond_the_token_limit_is_429(start_stack: StartStack, path: str) -> None:
    stack = stop_clocks(await start_stack(text_model(tokens=20), embedding_model(tokens=20)))
    parameters = {"input": ["two words"] * 12} if path == EMBED else {"max_tokens": 18}
    assert (await ask(stack, path, **parameters)).limits.keys() == {
        "limit-tokens",
        "remaining-tokens",
        "reset-tokens",
    }
    for stream in ({}, {"stream": True}):
        refused = await ask(stack, path, **({} if path == EMBED else stream), **parameters)
        assert refused.status == 429
        assert refused.remaining("tokens") == (0 if path == EMBED else 2)
        assert refused.body["error"]["type"] == "tokens"
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert "on tokens per min (TPM): Limit 20," in refused.body["error"]["message"]


async def test_exhausted_limit_is_429_even_for_an_invalid_request(start_stack: StartStack) -> None:
    stack = stop_clocks(await start_stack(text_model(1)))
    fault = {"stop_token_ids": [50_000]}
    assert (await ask(stack, **fault)).status == 400
    assert (await ask(stack)).status == 200
    assert (await ask(stack, **fault)).status == 429


async def test_unlimited_model_sends_no_rate_limit_headers(start_stack: StartStack) -> None:
    stack = await start_stack(text_model(), EMBEDDING)
    for path in (CHAT, TEXT, EMBED):
        assert (await ask(stack, path)).limits == {}


async def test_sdk_raises_rate_limit_error(start_stack: StartStack) -> None:
    stack = stop_clocks(await start_stack(text_model(requests=1)))
    completions = stack.openai.chat.completions
    arguments: Any = {"model": "scripted", **TWO_WORDS[CHAT]}
    raw = await completions.with_raw_response.create(**arguments)
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            await completions.create(**arguments, stream=stream)
        error = caught.value
        assert (error.type, error.code, error.param) == ("requests", "rate_limit_exceeded", None)
        assert error.response.headers["x-ratelimit-limit-requests"] == "1"
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_aliases_of_a_model_share_one_allowance(start_stack: StartStack) -> None:
    stack = stop_clocks(await start_stack(text_model(requests=2)))
    assert (await ask(stack, model="gpt-4")).remaining("requests") == 1
    assert (await ask(stack, model="scripted")).remaining("requests") == 0
    assert (await ask(stack, model="gpt-4")).status == 429


async def test_each_prompt_of_a_batch_counts_as_a_request(
    start_stack: StartStack,
) -> None:
    stack = stop_clocks(await start_stack(text_model(5, 6000)))
    for stream, requests in ((False, 3), (True, 1)):
        answer = await ask(stack, TEXT, prompt=["a b", "c d e"], max_tokens=16, stream=stream)
        assert answer.remaining("requests") == requests
    refused = await ask(stack, TEXT, prompt=["a", "b"])
    assert (refused.status, refused.remaining("requests")) == (429, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_finished_response_is_charged_for_its_usage_not_max_tokens(
    start_stack: StartStack, stream: bool
) -> None:
    stack = stop_clocks(await start_stack(text_model(tokens=6000)))
    first = await ask(stack, max_tokens=100, n=2, stream=stream)
    assert first.remaining("tokens") == 6000 - (2 + 2 * 100)
    second = await ask(stack, stream=stream)  # without max_tokens only the prompt is reserved
    assert second.remaining("tokens") == 6000 - (2 + 2 * 16) - 2
    third = await ask(stack, max_tokens=1, stream=stream)
    assert third.remaining("tokens") == 6000 - (2 + 2 * 16) - (2 + 16) - (2 + 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_abandoned_response_is_charged_for_its_generated_tokens(
    start_stack: StartStack, stream: bool
) -> None:
    stack = stop_clocks(await start_stack(text_model(tokens=10_000, script=SLOW)))
    left = asyncio.create_task(ask(stack, max_tokens=4000, stream=stream))
    await eventually(lambda: stack.engine.health().generated_tokens >= 3)
    left.cancel()
    await eventually(lambda: stack.engine.health().running == 0)
    made = stack.engine.health().generated_tokens
    left_over = (await ask(stack, max_tokens=1)).remaining("tokens")
    assert 10_000 - 2 - made - 3 <= left_over <= 10_000 - 2 - (made - 1) - 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fail", "used"), [("start", 0), ("mid", 2), ("late", 16)])
async def test_failed_response_is_charged_for_its_generated_tokens(
    start_stack: StartStack, fail: str, used: int, stream: bool
) -> None:
    stack = stop_clocks(await start_stack(text_model(tokens=6000)))
    cue = [{"role": "user", "content": json.dumps({"fail": fail}).replace(" ", "")}]
    await ask(stack, messages=cue, max_tokens=100, stream=stream)
    assert (await ask(stack, max_tokens=1)).remaining("tokens") == 6000 - (1 + used) - 3


async def test_invalid_request_costs_nothing(start_stack: StartStack) -> None:
    stack = stop_clocks(await start_stack(text_model(3, 100), embedding_model(3, 100)))
    for path, parameters in (
        (CHAT, {"temperature": 3}),
        (TEXT, {"prompt": [[99_999_999] * 5000]}),
        (EMBED, {"input": ""}),
    ):
        assert (await ask(stack, path, **parameters)).status == 400
    assert (await ask(stack, max_tokens=60)).remaining("requests") == 2
    assert (await ask(stack, EMBED)).remaining("requests") == 2


@pytest.mark.parametrize(
    ("parameters", "status"), [({"max_tokens": 5000}, 400), ({"max_tokens": 99}, 429)]
)
async def test_refusal_after_tokenization_costs_a_request(
    start_stack: StartStack, parameters: dict[str, Any], status: int
) -> None:
    stack = stop_clocks(await start_stack(text_model(3, 100)))
    assert (await ask(stack, max_tokens=3)).remaining("tokens") == 95
    assert (await ask(stack, **parameters)).status == status
    last = await ask(stack, max_tokens=93)
    assert (last.remaining("requests"), last.remaining("tokens")) == (0, 0)
    stack = stop_clocks(await start_stack(text_model(3, 100)))
    for _ in range(3):
        await ask(stack, max_tokens=5000)
    refused = await ask(stack, **parameters)
    assert (refused.status, refused.body["error"]["type"]) == (429, "requests")


async def test_abandoned_best_of_is_charged_for_its_full_budget(
    start_stack: StartStack,
) -> None:
    stack = stop_clocks(await start_stack(text_model(tokens=100_000, script=SLOW)))
    left = asyncio.create_task(ask(stack, TEXT, best_of=20, max_tokens=4000))
    await eventually(lambda: stack.engine.health().generated_tokens >= 20)
    left.cancel()
    await eventually(lambda: stack.engine.health().running == 0)
    answer = await ask(stack, TEXT, best_of=4, max_tokens=1)
    assert answer.remaining("tokens") == 100_000 - (2 + 20 * 4000) - (2 + 4 * 1)
    assert answer.body["usage"]["total_tokens"] == 2 + 4
    assert (await ask(stack, TEXT, max_tokens=1)).remaining("tokens") == 100_000 - 80_002 - 6 - 3


class Gate:
    """Blocks embeddings after their admission and before the engine."""

    def __init__(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = 0
        self.opened = asyncio.Event()
        self.fault: Exception | None = None
        engine: Any = stack.server.registry.models[1].engine
        self._generate = engine.generate
        monkeypatch.setattr(engine, "generate", self._pass)

    async def _pass(self, *inputs: Any, **options: Any) -> Any:
        self.entered += 1
        await self.opened.wait()
        if self.fault is not None:
            raise self.fault
        return await self._generate(*inputs, **options)


async def test_concurrent_embeddings_share_the_token_limit(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stop_clocks(await start_stack(text_model(), embedding_model(tokens=100)))
    gate = Gate(stack, monkeypatch)
    inputs = ["three short words", "and three more"]  # estimated at 5 + 4 tokens; they have 3 + 3
    asked = [asyncio.create_task(ask(stack, EMBED, input=inputs)) for _ in range(20)]
    # 11 estimates of 9 tokens fit into 100: the other requests are refused while those 11 run.
    await eventually(lambda: gate.entered == 11 and sum(one.done() for one in asked) == 9)
    gate.opened.set()
    statuses = [answer.status for answer in await asyncio.gather(*asked)]
    assert (statuses.count(200), statuses.count(429)) == (11, 9)
    last = await ask(stack, EMBED, input=[1, 2, 3])
    assert last.remaining("tokens") == 100 - 11 * 6 - 3


async def test_embedding_estimate_is_at_most_the_context_length(start_stack: StartStack) -> None:
    model = ModelConfig(
        id="scripted-embedding",
        engine="scripted-embedding",
        engine_args={"context_length": 6},
        tokens_per_minute=20,
    )
    stack = stop_clocks(await start_stack(text_model(), model))
    assert (await ask(stack, EMBED, input="x")).remaining("tokens") == 19
    assert (await ask(stack, EMBED, input="x" * 1000)).remaining("tokens") == 18


@pytest.mark.parametrize("how", ["left", "failed"])
async def test_unfinished_embedding_is_charged_its_estimate(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    stack = stop_clocks(await start_stack(text_model(), embedding_model(tokens=100)))
    gate = Gate(stack, monkeypatch)
    asked = asyncio.create_task(ask(stack, EMBED, input="three short words"))
    await eventually(lambda: gate.entered)
    if how == "left":
        asked.cancel()
        limiter = stack.server.registry.models[1].rate_limiter
        await eventually(lambda: not any(bucket.charges for bucket in limiter._kept.values()))
        gate.opened.set()
    else:
        gate.fault = RuntimeError("canary-embedding")
        gate.opened.set()
        assert (await asked).status == 500
        gate.fault = None
    assert (await ask(stack, EMBED, input="x")).remaining("tokens") == 100 - 5 - 1


async def test_exhausted_limit_is_refused_without_queueing(start_stack: StartStack) -> None:
    model = ModelConfig(
        id="scripted",
        engine="scripted",
        engine_args=SLOW | {"fail": "hang"},
        max_running=1,
        queue_timeout_seconds=1.0,
        requests_per_minute=1,
    )
    stack = stop_clocks(await start_stack(model))
    running = asyncio.create_task(ask(stack))
    await eventually(lambda: stack.engine.health().generated_tokens)
    assert (await ask(stack)).body["error"]["code"] == "rate_limit_exceeded"
    running.cancel()


@dataclass
class Guarded:
    """A stack that requires keys over REST and gRPC, with keys of two users and of the edge."""

    stack: Stack
    alice: Entry
    alice_key: str
    bob: Entry
    bob_key: str
    edge_key: str

    async def generate(self, key: str, **metadata: str) -> list[GenerateResponse]:
        request = GenerateRequest(
            model="scripted", text="two words", stopping=Stopping(max_tokens=3)
        )
        return [
            part
            async for part in self.stack.stub.Generate(request, metadata=entries(key, metadata))
        ]

    async def embed(self, key: str, **metadata: str) -> RateLimits:
        inputs = [EmbedInput(text="two words")]
        answer = await self.stack.stub.Embed(
            EmbedRequest(model="scripted-embedding", inputs=inputs),
            metadata=entries(key, metadata),
        )
        limits: RateLimits = answer.rate_limits
        return limits


def entries(key: str, metadata: dict[str, str]) -> tuple[tuple[str, str], ...]:
    named = ((name.replace("_", "-"), value) for name, value in metadata.items())
    return (("authorization", f"Bearer {key}"), *named)


@pytest.fixture
async def guarded(start_stack: StartStack, tmp_path: Path) -> Guarded:
    """The models allow each key two requests a minute; bob's key allows three."""
    path = tmp_path / "keys.json"
    alice, alice_key = create_key(path, "alice")
    bob, bob_key = create_key(path, "bob", requests_per_minute=3, tokens_per_minute=600)
    _, edge_key = create_key(path, "edge", scope="edge")
    stack = await start_stack(
        text_model(requests=2),
        embedding_model(requests=2),
        keys=path,
        server_keys=path,
        upstream_token=edge_key,
    )
    return Guarded(stop_clocks(stack), alice, alice_key, bob, bob_key, edge_key)


@pytest.mark.parametrize("path", [CHAT, TEXT, EMBED])
async def test_each_key_has_its_own_allowance(guarded: Guarded, path: str) -> None:
    stack = guarded.stack
    for left in (1, 0):
        alice = await ask(stack, path, guarded.alice_key)
        assert (alice.status, alice.remaining("requests")) == (200, left)
        assert "limit-tokens" not in alice.limits
    assert (await ask(stack, path, guarded.alice_key)).status == 429
    for left in (2, 1, 0):
        bob = await ask(stack, path, guarded.bob_key)
        assert (bob.status, bob.remaining("requests")) == (200, left)
        assert (bob.limits["limit-requests"], bob.limits["limit-tokens"]) == ("3", "600")
    assert (await ask(stack, path, guarded.bob_key)).status == 429


async def test_key_has_one_allowance_over_rest_and_grpc(guarded: Guarded) -> None:
    stack = guarded.stack
    assert (await ask(stack, CHAT, guarded.bob_key, max_tokens=8)).remaining("tokens") == 590
    (head, *_) = await guarded.generate(guarded.bob_key)
    limits = head.admitted.rate_limits
    assert (limits.requests.limit, limits.requests.remaining, limits.requests.reset_ms) == (
        3,
        1,
        40_000,
    )
    assert (limits.tokens.limit, limits.tokens.remaining, limits.tokens.reset_ms) == (
        600,
        585,
        1_500,
    )
    assert (await ask(stack, EMBED, guarded.bob_key)).remaining("requests") == 2
    limits = await guarded.embed(guarded.bob_key)
    assert (limits.requests.remaining, limits.tokens.remaining) == (1, 596)


async def test_grpc_refusal_has_reason_retry_delay_and_rate_limits(guarded: Guarded) -> None:
    for call in (guarded.generate, guarded.embed):
        for _ in range(2):
            await call(guarded.alice_key)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(guarded.alice_key)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(caught.value)
        assert status is not None
        info, retry, limits = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            RateLimits(),
        )
        assert [
            detail.Unpack(kind)
            for detail, kind in zip(status.details, (info, retry, limits), strict=True)
        ] == [True] * 3
        assert (info.domain, info.reason) == ("isthmus", "rate_limit_exceeded")
        assert dict(info.metadata) == {"type": "requests"}
        assert retry.retry_delay.ToMilliseconds() == 30_000
        assert (limits.requests.limit, limits.requests.remaining) == (2, 0)
        assert not limits.HasField("tokens")


async def test_only_the_edge_key_may_name_another_principal(guarded: Guarded) -> None:
    bob = {"x_isthmus_principal": guarded.bob.id}
    (head, *_) = await guarded.generate(guarded.alice_key, **bob)
    assert head.admitted.rate_limits.requests.limit == 2
    assert (await guarded.embed(guarded.alice_key, **bob)).requests.limit == 2
    (head, *_) = await guarded.generate(guarded.edge_key, **bob)
    assert head.admitted.rate_limits.requests.limit == 3
    assert head.admitted.rate_limits.requests.remaining == 2
    assert (await guarded.embed(guarded.edge_key, **bob)).requests.remaining == 2
    # The edge does not forward this header of a client.
    async with guarded.stack.http.post(
        EMBED,
        json={"model": "scripted-embedding", "input": "x"},
        headers={
            "authorization": f"Bearer {guarded.alice_key}",
            "x-isthmus-principal": guarded.bob.id,
        },
    ) as response:
        assert response.headers["x-ratelimit-limit-requests"] == "2"


async def test_changed_allowance_applies_without_a_restart(
    guarded: Guarded, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    assert (await ask(guarded.stack, CHAT, guarded.bob_key)).limits["limit-requests"] == "3"
    path.write_text(
        path.read_text().replace('"requests_per_minute": 3', '"requests_per_minute": 9')
    )

    async def applied() -> bool:
        return (await ask(guarded.stack, CHAT, guarded.bob_key)).limits["limit-requests"] == "9"

    async with asyncio.timeout(10):
        while not await applied():
            await asyncio.sleep(0.05)
