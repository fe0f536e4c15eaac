"""An edge with keys in front of a service without: the limits of its keys would not hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from edge.upstream import replica
from inference.server import InferenceServer
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest
from keys import create_key
from tests.conftest import TEXT, eventually, running_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@asynccontextmanager
async def edge_of(
    server: InferenceServer, path: Path, transport: str, **settings: Any
) -> AsyncIterator[tuple[Edge, ClientSession]]:
    config = EdgeConfig(
        port=0,
        upstreams=(f"127.0.0.1:{server.port}",),
        keys_file=path,
        transport=transport,
        settle_seconds=0.0,
        **settings,
    )
    async with serving(config) as (edge, port):
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            yield edge, http


async def readiness(http: ClientSession) -> tuple[int, str]:
    async with http.get("/ready") as response:
        return response.status, " ".join((await response.json())["problems"].values())


async def ask(http: ClientSession, key: str) -> int:
    body = {"model": TEXT.id, "prompt": "Hi"}
    headers = {"authorization": f"Bearer {key}"}
    async with http.post("/v1/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.levelno == level and "keys file" in record.message
    ]


async def test_keys_without_limits_of_their_own_serve_with_a_warning(
    path: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = create_key(path, "someone")
    async with running_server(TEXT) as server, edge_of(server, path, transport) as (edge, http):
        await eventually(edge.router.ready)
        assert await ask(http, key) == 200
        status, problem = await readiness(http)
        assert status == 200
        assert "no keys file" in problem
        (line,) = lines(caplog)
        assert f"127.0.0.1:{server.port}" in line
        assert "--keys" in line


async def test_keys_with_limits_of_their_own_keep_the_edge_from_becoming_ready(
    path: Path,
    transport: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "LAST_RETRY_SECONDS", 0.1)
    _, key = create_key(path, "limited", requests_per_minute=1)
    async with running_server(TEXT) as server, edge_of(server, path, transport) as (edge, http):
        await eventually(lambda: lines(caplog, logging.ERROR))
        await asyncio.sleep(0.4)
        assert len(lines(caplog, logging.ERROR)) == 1
        assert not edge.router.ready()
        status, problem = await readiness(http)
        assert status == 503
        assert "limits" in problem
        assert await ask(http, key) == 503


async def test_a_service_that_serves_and_is_unusable_is_asked_less_and_less_often(
    path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "FIRST_RETRY_SECONDS", 0.0123)
    monkeypatch.setattr(replica, "LAST_RETRY_SECONDS", 0.0321)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    create_key(path, "limited", requests_per_minute=1)
    async with running_server(TEXT) as server, edge_of(server, path, transport):
        await eventually(lambda: pauses.count(0.0123) + pauses.count(0.0321) >= 6)
    assert pauses.count(0.0321) >= 3


async def test_a_service_with_the_keys_serves_without_a_word_and_enforces_the_limits(
    path: Path, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = create_key(path, "limited", requests_per_minute=1)
    _, token = create_key(path, "edge", scope="edge")
    async with running_server(TEXT, keys=path) as server:
        async with edge_of(server, path, transport, upstream_token=token) as (edge, http):
            await eventually(edge.router.ready)
            assert await readiness(http) == (200, "")
            assert [await ask(http, key) for _ in range(2)] == [200, 429]
    assert not lines(caplog)
    assert not lines(caplog, logging.ERROR)


async def test_a_limit_that_a_key_gets_later_is_an_error_in_log_and_readiness(
    path: Path,
    transport: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keys.store._STAT_SECONDS", 0.0)
    _, key = create_key(path, "someone")
    often = {"resolve_seconds": 0.05}
    async with (
        running_server(TEXT) as server,
        edge_of(server, path, transport, **often) as (edge, http),
    ):
        await eventually(edge.router.ready)
        create_key(path, "limited", tokens_per_minute=1)
        await eventually(lambda: lines(caplog, logging.ERROR))
        # Requests that run now are not cut off; the edge does not become ready so again.
        assert await ask(http, key) == 200
        assert "limits" in (await readiness(http))[1]


async def test_an_edge_without_keys_needs_none_in_the_service(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(TEXT) as server:
        upstreams = (f"127.0.0.1:{server.port}",)
        config = EdgeConfig(port=0, upstreams=upstreams, transport=transport, settle_seconds=0.0)
        async with serving(config) as (edge, _):
            await eventually(edge.router.ready)
            assert edge.router.upstreams[0].problem == ""
    assert not lines(caplog)


@pytest.mark.parametrize("scope", ["api", None])
async def test_a_wrong_credential_of_the_edge_is_one_line_and_no_silence(
    path: Path,
    transport: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    scope: str | None,
) -> None:
    """A key of scope `api` may list models and open no session."""
    monkeypatch.setattr(replica, "LAST_RETRY_SECONDS", 0.1)
    if scope is not None and transport == "generate":
        pytest.skip("the service takes such a key, as from any caller")
    _, token = create_key(path, "edge", scope=scope or "edge")
    token = token if scope else f"{token}x"
    async with running_server(TEXT, keys=path) as server:
        async with edge_of(server, path, transport, upstream_token=token) as (edge, http):
            await eventually(lambda: lines(caplog))
            await asyncio.sleep(0.4)
            (line,) = lines(caplog)
            assert "ISTHMUS_EDGE_TOKEN" in line
            assert token not in line
            assert not edge.router.ready()
            assert (await readiness(http))[0] == 503


@pytest.mark.parametrize("with_keys", [False, True])
async def test_list_models_tells_whether_the_service_knows_keys(
    path: Path, with_keys: bool
) -> None:
    _, key = create_key(path, "someone")
    async with running_server(TEXT, keys=path if with_keys else None) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            reply = await InferenceServiceStub(channel).ListModels(
                ListModelsRequest(), metadata=(("authorization", f"Bearer {key}"),)
            )
    assert reply.knows_keys is with_keys
