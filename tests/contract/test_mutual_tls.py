"""TLS between edge and inference service: only right certificates serve, and one line says why."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

import keys.certificates
from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from edge.upstream import replica
from inference.config import ServerConfig
from inference.server import InferenceServer
from keys import ConfigError
from tests.certificates import Authority
from tests.conftest import TEXT, eventually


@dataclass
class World:
    """Two authorities, and the settings of a service and an edge that trust the first."""

    ours: Authority
    other: Authority
    service: dict[str, Any] = field(default_factory=dict)
    edge: dict[str, Any] = field(default_factory=dict)

    def service_shows(self, *names: str, of: Authority, expired: bool = False) -> None:
        pair = of.pair(*names, expired=expired)
        self.service |= {"tls_certificate": pair.certificate, "tls_key": pair.key}

    def edge_shows(self, *, of: Authority, expired: bool = False) -> None:
        pair = of.pair("edge.example.org", expired=expired)
        self.edge |= {"upstream_certificate": pair.certificate, "upstream_key": pair.key}


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(Authority(tmp_path), Authority(tmp_path, "other"))
    made.service_shows("localhost", "127.0.0.1", of=made.ours)
    made.service["tls_client_ca"] = made.edge["upstream_ca"] = made.ours.path
    made.edge_shows(of=made.ours)
    return made


@asynccontextmanager
async def service(world: World) -> AsyncIterator[InferenceServer]:
    config = ServerConfig(listen="127.0.0.1:0", models=(TEXT,), **world.service)
    server = InferenceServer(config)
    await server.start()
    await server.load()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def edge_of(
    world: World, server: InferenceServer, transport: str
) -> AsyncIterator[tuple[Edge, ClientSession]]:
    config = EdgeConfig(
        port=0,
        upstreams=(f"127.0.0.1:{server.port}",),
        transport=transport,
        settle_seconds=0.0,
        **world.edge,
    )
    async with serving(config) as (edge, port):
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            yield edge, http


async def ask(http: ClientSession) -> int:
    async with http.post("/v1/completions", json={"model": TEXT.id, "prompt": "Hi"}) as response:
        await response.read()
        return response.status


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the edge about its replicas."""
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("edge.")
    ]


async def test_the_right_certificates_on_both_sides_serve(
    world: World, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(world) as server, edge_of(world, server, transport) as (edge, http):
        await eventually(edge.router.ready)
        assert await ask(http) == 200
        async with http.get("/ready") as response:
            assert (response.status, (await response.json())["problems"]) == (200, {})
    assert not reasons(caplog)


def client_of_another_authority(world: World) -> None:
    world.edge_shows(of=world.other)


def expired_client(world: World) -> None:
    world.edge_shows(of=world.ours, expired=True)


def no_client_certificate(world: World) -> None:
    del world.edge["upstream_certificate"], world.edge["upstream_key"]


def expired_service(world: World) -> None:
    world.service_shows("localhost", "127.0.0.1", of=world.ours, expired=True)


def service_with_another_name(world: World) -> None:
    world.service_shows("elsewhere.example.org", of=world.ours)


def service_of_another_authority(world: World) -> None:
    world.service_shows("localhost", "127.0.0.1", of=world.other)


def service_without_tls(world: World) -> None:
    world.service.clear()


def edge_without_tls(world: World) -> None:
    world.edge.clear()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (client_of_another_authority, "closes the connection.*upstream_certificate"),
        (expired_client, "closes the connection.*upstream_certificate"),
        (no_client_certificate, "closes the connection.*upstream_certificate"),
        (expired_service, "its certificate has expired"),
        (service_with_another_name, "its certificate is for another name"),
        (service_of_another_authority, "its certificate .* upstream_ca"),
        (service_without_tls, "no TLS"),
        (edge_without_tls, "closes the connection.*upstream_ca"),
    ],
)
async def test_a_wrong_certificate_serves_nothing_and_one_line_says_why(
    world: World,
    transport: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
    reason: str,
) -> None:
    monkeypatch.setattr(replica, "LAST_RETRY_SECONDS", 0.1)
    fault(world)
    async with service(world) as server, edge_of(world, server, transport) as (edge, http):
        await eventually(lambda: reasons(caplog))
        await asyncio.sleep(0.4)  # Further attempts, every 0.1 s, add no line.
        (line,) = reasons(caplog)
        assert f"127.0.0.1:{server.port}" in line
        assert re.search(reason, line), line
        assert not edge.router.ready()
        async with http.get("/ready") as response:
            answer = await response.json()
        assert response.status == 503
        (problem,) = answer["problems"].values()
        assert problem
        assert problem in line
        assert await ask(http) == 503


async def test_a_renewed_certificate_of_the_service_needs_no_restart(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys.certificates, "_STAT_SECONDS", 0.0)
    expired_service(world)
    async with service(world) as server, edge_of(world, server, "session") as (edge, http):
        await eventually(lambda: reasons(caplog))
        good = world.ours.pair("127.0.0.1")
        world.service["tls_certificate"].write_bytes(good.certificate.read_bytes())
        world.service["tls_key"].write_bytes(good.key.read_bytes())
        await eventually(edge.router.ready)
        assert await ask(http) == 200
        async with http.get("/ready") as response:
            assert (await response.json())["problems"] == {}


async def test_a_broken_renewal_of_the_service_keeps_the_old_certificate(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys.certificates, "_STAT_SECONDS", 0.0)
    async with service(world) as server:
        world.service["tls_key"].write_text("broken")
        for _ in range(2):
            async with edge_of(world, server, "session") as (edge, _http):
                await eventually(edge.router.ready)
    assert caplog.text.count("is broken") == 1


@pytest.mark.parametrize("name", ["upstream_ca", "upstream_certificate", "upstream_key"])
async def test_an_edge_with_an_unusable_file_does_not_start(world: World, name: str) -> None:
    world.edge[name].write_text("no PEM")
    with pytest.raises(ConfigError, match=f"{name}: {world.edge[name]} "):
        async with serving(EdgeConfig(port=0, **world.edge)):
            pass


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key", "tls_client_ca"])
async def test_a_service_with_an_unusable_file_does_not_start(world: World, name: str) -> None:
    world.service[name].write_text("no PEM")
    with pytest.raises(ConfigError, match=f"{name}: {world.service[name]} "):
        async with service(world):
            pass


def test_plaintext_off_loopback_must_be_allowed_on_both_sides(world: World, tmp_path: Path) -> None:
    off = {"upstreams": ("service.example.org:50051",)}
    with pytest.raises(ConfigError, match=r"^upstreams: .* TLS is off"):
        EdgeConfig(**off)
    EdgeConfig(**off, allow_plaintext=True)
    EdgeConfig(**off, **world.edge)
    service: dict[str, Any] = {
        "listen": "0.0.0.0:0",
        "models": (TEXT,),
        "keys_file": tmp_path / "k",
    }
    with pytest.raises(ConfigError, match=r"^listen: .* TLS is off"):
        ServerConfig(**service)
    ServerConfig(**service, allow_plaintext=True)
    ServerConfig(**service, **world.service)
