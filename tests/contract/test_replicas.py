"""Several replicas of a model: which requests move to another one, and which are not retried."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from inference.config import ModelConfig
from inference.server import InferenceServer
from tests.conftest import TEXT, eventually, running_server


class Pair:
    """An edge with two replicas."""

    def __init__(self, edge: Edge, http: ClientSession, servers: list[InferenceServer]) -> None:
        self.edge = edge
        self.http = http
        self.servers = servers

    async def ask(self, cue: dict[str, Any], **parameters: Any) -> tuple[int, dict[str, Any]]:
        body = {"model": "scripted", "prompt": json.dumps(cue)} | parameters
        async with self.http.post("/v1/completions", json=body) as response:
            return response.status, await response.json()

    def made(self) -> list[int]:
        """Tokens that each replica has generated."""
        return [s.registry.models[0].engine.health().generated_tokens for s in self.servers]


@pytest.fixture
async def pair(transport: str) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as ends:

        async def start(*models: ModelConfig, **edge: Any) -> Pair:
            servers = [await ends.enter_async_context(running_server(m)) for m in models]
            upstreams = tuple(f"127.0.0.1:{server.port}" for server in servers)
            config = EdgeConfig(
                port=0, upstreams=upstreams, transport=transport, settle_seconds=0.0, **edge
            )
            running, port = await ends.enter_async_context(serving(config))
            await eventually(running.router.ready)
            http = await ends.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))
            return Pair(running, http, servers)

        yield start


async def test_requests_without_a_prefix_take_turns(pair: Callable[..., Any]) -> None:
    two = await pair(TEXT, TEXT)
    body = {"model": "scripted", "prompt": "", "max_tokens": 2}
    for _ in range(10):
        async with two.http.post("/v1/completions", json=body) as response:
            assert response.status == 200
    assert two.made() == [10, 10]


@pytest.mark.parametrize("stream", [False, True])
async def test_request_that_kills_an_engine_is_not_retried(
    pair: Callable[..., Any], stream: bool
) -> None:
    two = await pair(TEXT, TEXT)
    body = {"model": "scripted", "prompt": json.dumps({"fail": "die"}), "stream": stream}
    async with two.http.post("/v1/completions", json=body) as response:
        await response.read()
    assert [server.registry.dead.is_set() for server in two.servers].count(True) == 1


async def test_request_refused_by_a_draining_replica_moves_to_another(
    pair: Callable[..., Any],
) -> None:
    two = await pair(TEXT, TEXT)
    # The edge has not yet learned that the replica is draining.
    two.servers[0].registry.draining.set()
    for number in range(12):
        status, answer = await two.ask({"tokens": 2}, session_id=str(number))
        assert (status, answer["usage"]["completion_tokens"]) == (200, 2)


async def test_failing_replica_gets_hardly_any_requests(pair: Callable[..., Any]) -> None:
    broken = ModelConfig(id="scripted", engine="scripted", engine_args={"fail": "start"})
    two = await pair(broken, TEXT)
    statuses = [(await two.ask({"tokens": 1}, max_tokens=1))[0] for _ in range(1)]
    plain = {"model": "scripted", "prompt": "x", "max_tokens": 1}
    for number in range(60):
        body = plain | {"session_id": str(number)}
        async with two.http.post("/v1/completions", json=body) as response:
            statuses.append(response.status)
    assert statuses.count(500) <= 6
    assert set(statuses[-10:]) == {200}


async def test_unknown_model_is_404_while_a_replica_is_down(
    pair: Callable[..., Any],
) -> None:
    two = await pair(TEXT, TEXT)
    await two.servers[0].close()
    await eventually(lambda: not two.edge.router.ready())
    async with two.http.post("/v1/completions", json={"model": "no", "prompt": "x"}) as response:
        assert response.status == 404


async def test_retry_keeps_the_deadline_of_the_request(pair: Callable[..., Any]) -> None:
    slow = ModelConfig(
        id="scripted",
        engine="scripted",
        engine_args={"step_seconds": 0.01, "tokens": 4000},
        max_running=1,
        queue_timeout_seconds=2.4,
    )
    two = await pair(slow, slow)
    # Without a prefix, each goes to the least busy replica.
    busy = [asyncio.create_task(two.ask({}, prompt="", max_tokens=4000)) for _ in range(2)]
    await eventually(lambda: min(two.made()) > 0)
    started = asyncio.get_running_loop().time()
    body = {"model": "scripted", "prompt": "x", "stream": True}
    async with two.http.post(
        "/v1/completions", json=body, headers={"x-request-timeout": "3"}
    ) as response:
        assert response.status in (503, 504)
    # Two queue timeouts, or a new deadline for the retry, would take at least 4.8 s.
    assert asyncio.get_running_loop().time() - started < 4.5
    for task in busy:
        task.cancel()
