"""grpc.health.v1: every watcher is told of every change, and a wedged engine is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.app import serving
from edge.config import EdgeConfig
from inference import health as health_module
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.conftest import TEXT, eventually, running_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Watcher:
    """One Watch call and the statuses that it was told."""

    def __init__(self, channel: grpc.aio.Channel, name: str = "") -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self.call = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        self.told: list[int] = []
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            while isinstance(reply := await self.call.read(), health_pb2.HealthCheckResponse):
                self.told.append(reply.status)

    async def leave(self) -> None:
        self.call.cancel()
        await asyncio.wait([self.reader])


@asynccontextmanager
async def watched(*models: ModelConfig) -> AsyncIterator[tuple[InferenceServer, grpc.aio.Channel]]:
    async with running_server(*models) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield server, channel


@pytest.mark.parametrize("name", ["", "scripted"])
async def test_a_watcher_is_told_of_changes_after_another_has_left(name: str) -> None:
    async with watched(TEXT) as (server, channel):
        leaving, staying = Watcher(channel, name), Watcher(channel, name)
        await eventually(lambda: leaving.told == staying.told == [SERVING])
        await leaving.leave()
        server.registry.draining.set()
        await eventually(lambda: staying.told == [SERVING, NOT_SERVING])
        server.registry.draining.clear()
        await eventually(lambda: staying.told == [SERVING, NOT_SERVING, SERVING])
        await staying.leave()


async def test_an_unknown_service_is_unknown_to_watch_and_not_found_to_check() -> None:
    async with watched(TEXT) as (_, channel):
        watcher = Watcher(channel, "nobody")
        await eventually(lambda: watcher.told == [UNKNOWN])
        await watcher.leave()
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHERS", 3)
    async with watched(TEXT) as (_, channel):
        watchers = [Watcher(channel) for _ in range(3)]
        await eventually(lambda: all(watcher.told for watcher in watchers))
        one_more = Watcher(channel)
        assert await one_more.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await watchers.pop().leave()
        again = Watcher(channel)
        await eventually(lambda: again.told == [SERVING])
        for watcher in (*watchers, again, one_more):
            await watcher.leave()


async def test_watchers_of_one_address_leave_places_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHERS_OF_ADDRESS", 3)
    async with watched(TEXT) as (server, channel):
        watchers = [Watcher(channel) for _ in range(4)]
        await eventually(lambda: sum(watcher.told == [SERVING] for watcher in watchers) == 3)
        outsider = Outsider()
        watch = asyncio.create_task(
            server._monitor.service.Watch(health_pb2.HealthCheckRequest(), outsider)
        )
        await eventually(lambda: outsider.told == [SERVING])
        watch.cancel()
        for watcher in watchers:
            await watcher.leave()


class Outsider:
    """The context of a call from another address, of which this machine may have none."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def peer(self) -> str:
        return "ipv4:192.0.2.1:40000"

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        self.told.append(response.status)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise AssertionError(f"{code}: {details}")


async def test_a_watcher_cannot_make_the_service_hold_a_long_name() -> None:
    async with watched(TEXT) as (_, channel):
        watcher = Watcher(channel, "x" * 4_000_000)
        async with asyncio.timeout(5):
            assert await watcher.call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await watcher.leave()


async def test_a_second_edge_becomes_ready_when_the_first_was_restarted_during_the_load() -> None:
    slow = ModelConfig(id="scripted", engine="scripted", engine_args={"load_seconds": 1.0})
    server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(slow,)))
    await server.start()
    loading = asyncio.create_task(server.load())
    config = EdgeConfig(port=0, upstreams=(f"127.0.0.1:{server.port}",), settle_seconds=0.0)
    try:
        async with serving(config) as (staying, _):
            async with serving(config) as (leaving, _):
                await eventually(lambda: staying.router.upstreams[0].replicas)
                await eventually(lambda: leaving.router.upstreams[0].replicas)
                await asyncio.sleep(0.3)
            await loading
            await eventually(staying.router.ready)
    finally:
        await server.close()


async def hang(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall[Any, Any]:
    """Starts a generation that stops making steps after its first token."""
    stub = InferenceServiceStub(channel)
    call = stub.Generate(
        GenerateRequest(model="scripted", text=json.dumps({"fail": "hang", "tokens": 3}))
    )
    await call.read()
    return call


async def test_a_wedged_engine_stops_serving_within_its_bound_and_serves_again() -> None:
    model = ModelConfig(id="scripted", engine="scripted", slow_step_seconds=0.5)
    async with watched(model) as (server, channel):
        watcher = Watcher(channel)
        call = await hang(channel)
        await eventually(lambda: watcher.told == [SERVING, NOT_SERVING], seconds=2.5)
        assert not server.registry.dead.is_set()
        call.cancel()
        await eventually(lambda: watcher.told == [SERVING, NOT_SERVING, SERVING])
        await watcher.leave()


async def test_an_engine_that_stays_wedged_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "WEDGED_SECONDS", 0.5)
    model = ModelConfig(id="scripted", engine="scripted", slow_step_seconds=0.2)
    async with watched(model) as (server, channel):
        call = await hang(channel)
        await asyncio.wait_for(server.registry.dead.wait(), 10)
        call.cancel()


async def test_an_engine_that_cannot_tell_its_health_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched(TEXT) as (server, channel):
        watcher = Watcher(channel)
        await eventually(lambda: watcher.told == [SERVING])

        def broken() -> None:
            raise RuntimeError("injected")

        monkeypatch.setattr(server.registry.models[0].engine, "health", broken)
        await asyncio.wait_for(server.registry.dead.wait(), 10)
        await eventually(lambda: watcher.told == [SERVING, NOT_SERVING])
        await watcher.leave()
