"""Every service and every edge is drained and started again in turn; no request fails.

The clients are what a load balancer with two edges is: a request goes to the other edge if the
connection is refused, or if a kept connection is closed before the response begins.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import (
    ClientConnectorError,
    ClientOSError,
    ClientSession,
    ServerDisconnectedError,
    TraceConfig,
)

from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from tests.conftest import EMBEDDING, eventually
from tests.contract.load import measured, words
from tests.contract.programs import fixed_port
from tests.contract.test_bars import scripted

IMAGE = ModelConfig(
    id="scripted-image", engine="scripted-image", engine_args={"steps": 3, "step_seconds": 0.02}
)
TEXT = {"model": "scripted", "prompt": json.dumps({"tokens": 30}), "max_tokens": 30}
VECTOR = {"model": EMBEDDING.id, "input": [json.dumps({"seconds": 0.2}), "x"]}
PICTURE = {"model": IMAGE.id, "prompt": "a star", "size": "64x64", "stream": True}


class Service:
    """A service on a fixed port."""

    def __init__(self) -> None:
        self.port = fixed_port()

    async def start(self) -> None:
        models = (scripted(0.01), EMBEDDING, IMAGE)
        config = ServerConfig(listen=f"127.0.0.1:{self.port}", models=models)
        self.server = InferenceServer(config)
        await self.server.start()
        await self.server.load()

    async def stop(self) -> None:
        await self.server.drain()
        await self.server.close()


class RunningEdge:
    """An edge on a fixed port before all services."""

    def __init__(self, services: list[Service]) -> None:
        self.port = fixed_port()
        self._upstreams = tuple(f"127.0.0.1:{service.port}" for service in services)

    async def start(self) -> None:
        self._running = AsyncExitStack()
        config = EdgeConfig(port=self.port, upstreams=self._upstreams, settle_seconds=0.3)
        self.edge: Edge
        self.edge, _ = await self._running.enter_async_context(serving(config))
        await eventually(self.edge.router.ready)

    async def stop(self) -> None:
        await self._running.aclose()


class Clients:
    """Clients that send one request after the other until `stop`, and check each response."""

    def __init__(self, http: ClientSession, edges: list[RunningEdge]) -> None:
        self._http = http
        self._ports = [edge.port for edge in edges]
        self._turn = 0
        self.stop = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.failed: list[str] = []

    async def run(self) -> None:
        kinds = [self.plain, self.stream, self.embedding, self.picture] * 4
        await asyncio.gather(*(self._client(kind) for kind in kinds))

    async def _client(self, kind: Any) -> None:
        while not self.stop.is_set():
            try:
                problem = await kind()
            except Exception as error:
                problem = repr(error)
            self.done[kind.__name__] += 1
            if problem:
                self.failed.append(f"{kind.__name__}: {problem}")

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        self._turn += 1
        # Each is a session of its own, so they are spread.
        session = {"x-session-id": str(self._turn)}
        for port in self._ports[self._turn % 2 :] + self._ports[: self._turn % 2]:
            kept = {"kept": False}
            try:
                response = await self._http.post(
                    f"http://127.0.0.1:{port}{path}",
                    json=body,
                    headers=session,
                    trace_request_ctx=kept,
                )
            except ClientConnectorError:
                self.moved["refused"] += 1
            except (ClientOSError, ServerDisconnectedError):
                if not kept["kept"]:
                    raise
                self.moved["closed"] += 1
            else:
                async with response:
                    return response.status, await response.text()
        return 0, "no edge took the request"

    async def plain(self) -> str:
        status, text = await self._ask("/v1/completions", TEXT)
        if status == 200 and json.loads(text)["choices"][0]["text"] == words(30):
            return ""
        return f"{status} {text}"

    async def stream(self) -> str:
        status, text = await self._ask("/v1/completions", TEXT | {"stream": True})
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        if status != 200 or not events or events[-1] != "[DONE]":
            return f"{status} {text}"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        return "" if "".join(c["text"] for c in choices) == words(30) else text

    async def embedding(self) -> str:
        status, text = await self._ask("/v1/embeddings", VECTOR)
        return "" if status == 200 and len(json.loads(text)["data"]) == 2 else f"{status} {text}"

    async def picture(self) -> str:
        status, text = await self._ask("/v1/images/generations", PICTURE)
        return "" if status == 200 and "image_generation.completed" in text else f"{status} {text}"


def note_kept_connections() -> TraceConfig:
    """Notes in the context of a request whether its connection had carried another one."""
    config = TraceConfig()

    async def note(_session: object, context: Any, _parameters: object) -> None:
        context.trace_request_ctx["kept"] = True

    config.on_connection_reuseconn.append(note)
    return config


async def test_rolling_restart_of_all_services_and_edges_fails_no_request() -> None:
    services = [Service() for _ in range(3)]
    edges = [RunningEdge(services) for _ in range(2)]
    for each in (*services, *edges):
        await each.start()
    async with ClientSession(trace_configs=[note_kept_connections()]) as http:
        clients = Clients(http, edges)
        running = asyncio.create_task(clients.run())
        await asyncio.sleep(0.3)
        try:
            for service in services:
                await service.stop()
                assert not clients.failed
                await service.start()
                await eventually(lambda: all(each.edge.router.ready() for each in edges))
                engine: Any = service.server.registry.models[0].engine
                await eventually(lambda e=engine: e.health().generated_tokens)
            for each in edges:
                before = clients.done.total()
                await each.stop()
                await eventually(lambda b=before: clients.done.total() > b + 16)
                await each.start()
        finally:
            clients.stop.set()
            await running
            await asyncio.gather(*(each.stop() for each in edges))
            await asyncio.gather(*(each.server.close() for each in services))
    done, moved = clients.done.total(), dict(clients.moved)
    measured(f"{done} requests, {len(clients.failed)} failed, moved to the other edge: {moved}")
    assert clients.failed == []
    assert min(clients.done[kind] for kind in ("plain", "stream", "embedding", "picture")) >= 10
