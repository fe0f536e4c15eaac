"""Turns of a conversation go to the replica that has its beginning in the cache."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from inference.config import ModelConfig
from tests.conftest import eventually, running_server
from tests.contract.load import measured
from tests.contract.test_metrics import scrape_at

MODEL = ModelConfig(
    id="scripted", engine="scripted", engine_args={"tokens": 20, "prefix_cache": True}
)
CONVERSATIONS, TURNS = 12, 6
INSTRUCTIONS = " ".join(f"rule{n}" for n in range(40))


class Pair:
    """An edge with two replicas; `sent` has the replica that got each request, 0 or 1."""

    def __init__(self, edge: Edge, port: int, http: ClientSession, servers: list[Any]) -> None:
        self.edge = edge
        self.port = port
        self._http = http
        self._engines = [server.registry.models[0].engine for server in servers]
        self.sent: list[int] = []

    async def ask(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        before = self._made()
        sent = {"model": "scripted"} | body
        async with self._http.post(f"/v1/{path}", json=sent, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
        (here,) = [n for n, made in enumerate(self._made()) if made > before[n]]
        self.sent.append(here)
        return answer

    async def say(self, *texts: str, **more: Any) -> dict[str, Any]:
        """A chat of instructions and the user's and the assistant's messages in turn."""
        headers = more.pop("headers", None)
        roles = ("user", "assistant") * len(texts)
        messages = [{"role": "system", "content": INSTRUCTIONS}]
        messages += [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        return await self.ask("chat/completions", {"messages": messages} | more, headers)

    def _made(self) -> list[int]:
        return [engine.health().generated_tokens for engine in self._engines]


@asynccontextmanager
async def replicas(transport: str) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as ends:
        servers = [await ends.enter_async_context(running_server(MODEL)) for _ in range(2)]
        upstreams = tuple(f"127.0.0.1:{server.port}" for server in servers)
        config = EdgeConfig(port=0, upstreams=upstreams, transport=transport, settle_seconds=0.0)
        edge, port = await ends.enter_async_context(serving(config))
        await eventually(edge.router.ready)
        http = await ends.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))
        yield Pair(edge, port, http, servers)


async def test_turns_stay_on_a_replica_and_conversations_are_spread(transport: str) -> None:
    async with replicas(transport) as two:
        places = set()
        for number in range(20):
            turns = [f"question {number}", "answer", "and then?", "that", "why?"]
            for count in (1, 3, 5):
                await two.say(*turns[:count])
            assert len(set(two.sent[-3:])) == 1
            places.add(two.sent[-1])
        assert places == {0, 1}
        seen = await scrape_at(two.port)
        assert seen.sum("isthmus_affinity_total", result="first") == 60
        assert seen.sum("isthmus_affinity_total") == 60


@pytest.mark.parametrize(
    "said",
    [
        {"prompt_cache_key": "a"},
        {"session_id": "a"},
        {"headers": {"x-session-id": "a"}},
        {"headers": {"session-id": "a"}},
        {"prompt_cache_key": "a", "session_id": "{n}", "headers": {"session-id": "{n}"}},
    ],
    ids=["prompt_cache_key", "session_id", "x-session-id", "session-id", "order"],
)
async def test_what_the_client_says_comes_first(said: dict[str, Any]) -> None:
    """Twenty conversations with nothing in common but that."""

    def of(value: Any, number: int) -> Any:
        if isinstance(value, dict):
            return {name: of(each, number) for name, each in value.items()}
        return value.replace("{n}", str(number))

    async with replicas("session") as two:
        for number in range(20):
            await two.say(f"question {number}", **of(said, number))
        assert len(set(two.sent)) == 1


async def test_values_of_a_header_are_spread_and_any_bytes_are_a_value() -> None:
    async with replicas("session") as two:
        for number in range(20):
            await two.say("same", headers={"x-session-id": f"ä{number}"})
        assert set(two.sent) == {0, 1}


async def test_completions_with_the_same_beginning_stay_on_a_replica() -> None:
    async with replicas("session") as two:
        for body in (
            {"prompt": "x " * 600},
            {"prompt": "x " * 600 + "y"},
            {"prompt": "x " * 600, "stream": False, "seed": 1},
        ):
            await two.ask("completions", body)
        assert len(set(two.sent)) == 1
        for number in range(20):
            await two.ask("completions", {"prompt": f"{number} x"})
        assert set(two.sent) == {0, 1}


async def test_a_trace_of_many_turns_hits_more_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trace with and without affinity; the scripted engines report what they had."""
    async with replicas("session") as two:
        with_affinity = await trace(two)
    async with replicas("session") as two:
        monkeypatch.setattr("edge.upstream.affinity.key_of", lambda *_: b"")
        least_busy = await trace(two)
    measured(f"cached prompt tokens: {with_affinity:.1%} with affinity, {least_busy:.1%} without")
    assert with_affinity > least_busy


async def trace(two: Pair) -> float:
    """Turns of several conversations in a random order; returns the part that was cached."""
    order = [number for number in range(CONVERSATIONS) for _ in range(TURNS)]
    random.Random(7).shuffle(order)
    said: dict[int, list[str]] = {number: [] for number in range(CONVERSATIONS)}
    prompted = cached = 0
    for number in order:
        said[number].append(f"conversation {number} " + "word " * 60 + str(len(said[number])))
        answer = await two.say(*said[number])
        said[number].append(answer["choices"][0]["message"]["content"])
        prompted += answer["usage"]["prompt_tokens"]
        cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached / prompted
