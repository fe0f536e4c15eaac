"""HTTPS at the edge: the same behaviour as in plain HTTP, on both event loops."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import uvloop

import keys.certificates
from edge import client_bounds
from edge.app import serving
from edge.config import EdgeConfig
from edge.openai.errors import http as http_errors
from edge.state import Edge
from keys import ConfigError, create_key
from launch.probes import edge_probe
from tests.certificates import Authority, Pair
from tests.conftest import IMAGE, TEXT, eventually, running_server
from tests.contract.test_http_faults import (
    assert_refused,
    head,
    large,
    models,
    parse_responses,
    post,
    read_to_end,
)

CLOSE = b"connection: close\r\n"
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on one of the event loops; the product uses uvloop."""
    chosen: Run = request.param
    return chosen


@dataclass
class Secured:
    """The files of a test."""

    authority: Authority
    pair: Pair


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    authority = Authority(tmp_path)
    return Secured(authority, authority.pair("127.0.0.1", "localhost"))


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def maybe_secured(request: pytest.FixtureRequest, secured: Secured) -> Secured | None:
    return secured if request.param else None


@dataclass
class Running:
    """An edge with a scripted service behind it."""

    edge: Edge
    port: int
    engine: Any
    context: ssl.SSLContext | None

    @property
    def url(self) -> str:
        return f"{'http' if self.context is None else 'https'}://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def connection(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context or self.context
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def exchange(self, data: bytes) -> list[Any]:
        async with self.connection() as (reader, writer):
            writer.write(data)
            return parse_responses(await read_to_end(reader))

    def held(self) -> int:
        """Connections of clients that the edge holds."""
        ends = psutil.Process().net_connections("tcp4")
        return sum(end.laddr.port == self.port and bool(end.raddr) for end in ends)

    async def certificate(self) -> bytes:
        """The certificate, in DER, that a new connection gets."""
        async with self.connection() as (_, writer):
            shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return shown


@asynccontextmanager
async def stack(secured: Secured | None, **settings: Any) -> AsyncIterator[Running]:
    if secured is not None:
        settings |= {"tls_certificate": secured.pair.certificate, "tls_key": secured.pair.key}
    async with running_server(TEXT, IMAGE) as server:
        upstreams = (f"127.0.0.1:{server.port}",)
        config = EdgeConfig(port=0, upstreams=upstreams, settle_seconds=0.0, **settings)
        async with serving(config) as (edge, port):
            await eventually(edge.router.ready)
            context = secured.authority.client() if secured else None
            yield Running(edge, port, server.registry.models[0].engine, context)


def closing(request: bytes) -> bytes:
    return request.replace(b"host: x\r\n", b"host: x\r\n" + CLOSE)


def test_responses_streams_and_close_are_the_same_in_plain_and_tls(
    run: Run, maybe_secured: Secured | None
) -> None:
    async def check() -> None:
        async with stack(maybe_secured) as running:
            answers = await running.exchange(post() + models() + post(CLOSE))
            assert [answer.status for answer in answers] == [200] * 3
            (ready,) = await running.exchange(head("GET", "/ready", CLOSE))
            assert ready.status == 200
            (large_answer,) = await running.exchange(closing(large(1000, 400, n=8)))
            assert len(json.loads(large_answer.body)["choices"]) == 8
            streamed = json.dumps({"model": "scripted", "prompt": "a b c", "stream": True})
            async with running.connection() as (reader, writer):
                writer.write(post(CLOSE, body=streamed.encode(), path="/v1/completions"))
                data = await read_to_end(reader)
            assert b"text/event-stream" in data
            assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    run(check())


def test_malformed_requests_get_their_error_and_then_the_end(
    run: Run, maybe_secured: Secured | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with stack(maybe_secured) as running:
            for data, error in (
                (b"garbage\r\n\r\n", http_errors.malformed_request()),
                (models(b"x: " + b"a" * 4_000_000 + b"\r\n"), http_errors.line_too_long(8190)),
            ):
                (refused,) = await running.exchange(data)
                assert_refused(refused, error)
            await eventually(lambda: not running.held())
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    run(check())


def test_a_slow_reader_of_a_closing_connection_gets_the_whole_response(
    run: Run, maybe_secured: Secured | None
) -> None:
    async def check() -> None:
        async with stack(maybe_secured, write_stall_seconds=1.0) as running:
            async with running.connection() as (reader, writer):
                writer.write(closing(large(1000, 400, n=32)))
                data = bytearray()
                for _ in range(6):
                    data += await reader.readexactly(500_000)
                    await asyncio.sleep(0.3)
                data += await read_to_end(reader)
            (answer,) = parse_responses(bytes(data))
            assert len(json.loads(answer.body)["choices"]) == 32

    run(check())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux drops them")
@pytest.mark.parametrize(
    "request_bytes",
    [large(1000, 400, n=16), large(1000, 400, stream=True, n=16)],
    ids=["plain", "stream"],
)
def test_a_client_that_reads_nothing_is_dropped(
    run: Run, secured: Secured, request_bytes: bytes
) -> None:
    async def check() -> None:
        settings = {"write_stall_seconds": 1.0, "max_pending_bytes": 1 << 30}
        async with stack(secured, **settings) as running:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await asyncio.to_thread(client.connect, ("127.0.0.1", running.port))
                assert running.context is not None
                wrapped = await asyncio.to_thread(
                    running.context.wrap_socket, client, server_hostname="127.0.0.1"
                )
                await asyncio.to_thread(wrapped.sendall, request_bytes)
                assert running.held() == 1
                await eventually(lambda: not running.held(), 30.0)
                wrapped.close()
            await eventually(lambda: running.edge.requests == 0)
            await eventually(lambda: running.engine.health().running == 0)

    run(check())


async def is_dropped(running: Running, request: bytes) -> None:
    """Expects that a client that reads a little now and then is dropped."""
    leaving = asyncio.Event()

    def read_now_and_then() -> None:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            plain.connect(("127.0.0.1", running.port))
            context = running.context
            client = context.wrap_socket(plain, server_hostname="x") if context else plain
            with client, suppress(OSError):
                client.sendall(request)
                while not leaving.is_set() and client.recv(16 * 1024):
                    time.sleep(0.1)

    if running.context is not None:
        running.context.check_hostname = False
    held = running.held()
    reading = asyncio.create_task(asyncio.to_thread(read_now_and_then))
    await eventually(lambda: running.held() > held)
    try:
        await eventually(lambda: running.held() <= held, 30.0)  # reading all takes 75 s
    finally:
        leaving.set()
        await reading


def test_client_that_reads_a_little_now_and_then_is_dropped(
    run: Run, maybe_secured: Secured | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_bounds, "SLOWEST_BYTES_PER_SECOND", 12_000_000)

    async def check() -> None:
        async with stack(maybe_secured, write_stall_seconds=1.0) as running:
            await is_dropped(running, large(1000, 400, n=32))

    run(check())


@pytest.mark.parametrize("kind", ["document", "items", "stream"])
def test_slow_reader_of_a_large_response_object_is_dropped(
    run: Run, maybe_secured: Secured | None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It repeats what the request had, so it is written without waiting for the model."""
    monkeypatch.setattr(client_bounds, "SLOWEST_BYTES_PER_SECOND", 12_000_000)
    text = "x" * 6_000_000

    async def check() -> None:
        settings = {"responses_bytes": 64 << 20, "max_body_bytes": 16 << 20}
        async with stack(maybe_secured, write_stall_seconds=1.0, **settings) as running:
            members: dict[str, Any] = {"model": "scripted", "input": text, "instructions": text}
            members |= {"store": True, "stream": kind == "stream"}
            request = partial(post, body=json.dumps(members).encode(), path="/v1/responses")
            if kind == "stream":
                await is_dropped(running, request())
                return
            (made,) = await running.exchange(request(CLOSE))
            assert made.status == 200, made.body
            path = f"/v1/responses/{json.loads(made.body)['id']}"
            path += "/input_items" if kind == "items" else ""
            await is_dropped(running, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    run(check())


def test_a_stream_whose_reader_falls_behind_is_bounded(run: Run, secured: Secured) -> None:
    async def check() -> None:
        async with stack(secured, max_pending_bytes=64 * 1024) as running:
            async with running.connection() as (reader, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(large(2000, 400, stream=True, n=16))
                await eventually(lambda: running.edge.requests == 1)
                await eventually(lambda: running.edge.requests == 0, 60.0)
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                with suppress(ConnectionError):
                    assert b"[DONE]" not in await read_to_end(reader)
            await eventually(lambda: running.engine.health().running == 0)

    run(check())


def test_a_handshake_that_stalls_is_bounded_like_a_head(run: Run, secured: Secured) -> None:
    async def check() -> None:
        async with stack(secured, head_seconds=0.3) as running:
            for sent in (b"", b"\x16\x03\x01"):
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(sent)
                assert await read_to_end(reader) == b""
                writer.close()
            await eventually(lambda: not running.held())
            assert [a.status for a in await running.exchange(models(CLOSE))] == [200]

    run(check())


def test_a_client_that_does_not_answer_the_goodbye_is_let_go(run: Run, secured: Secured) -> None:
    async def check() -> None:
        async with stack(secured, request_seconds=0.5) as running:
            with socket.socket() as client:
                await asyncio.to_thread(client.connect, ("127.0.0.1", running.port))
                assert running.context is not None
                wrapped = await asyncio.to_thread(
                    running.context.wrap_socket, client, server_hostname="127.0.0.1"
                )
                await asyncio.to_thread(wrapped.sendall, models(CLOSE))
                await eventually(lambda: not running.held(), 20.0)
                wrapped.close()

    run(check())


def test_plain_http_and_old_versions_of_tls_are_refused_quietly(
    run: Run, secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with stack(secured) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(models())
            assert not (await read_to_end(reader)).startswith(b"HTTP/")
            writer.close()
            for version, accepted in (
                (ssl.TLSVersion.TLSv1_1, False),
                (ssl.TLSVersion.TLSv1_2, True),
                (ssl.TLSVersion.TLSv1_3, True),
            ):
                context = secured.authority.client()
                context.set_ciphers("DEFAULT:@SECLEVEL=0")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    context.minimum_version = context.maximum_version = version
                try:
                    async with running.connection(context) as (_, connected):
                        assert connected.get_extra_info("ssl_object").version()
                        assert accepted
                except (ssl.SSLError, ConnectionError):
                    assert not accepted
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    run(check())


def test_a_renewed_certificate_is_used_for_new_connections_only(
    run: Run, secured: Secured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys.certificates, "_STAT_SECONDS", 0.0)

    async def check() -> None:
        async with stack(secured) as running, running.connection() as (reader, writer):
            first = await running.certificate()
            assert await running.certificate() == first
            renewed = secured.authority.pair("localhost", "127.0.0.1")
            secured.pair.replace_by(renewed)
            second = await running.certificate()
            assert second != first
            writer.write(models(CLOSE))
            (answer,) = parse_responses(await read_to_end(reader))
            assert answer.status == 200
            secured.pair.certificate.write_text("broken")
            for _ in range(3):
                assert await running.certificate() == second
        assert caplog.text.count("is broken") == 1

    run(check())


async def test_image_urls_and_sdk_style_clients_work_over_https(secured: Secured) -> None:
    async with stack(secured) as running:
        connector = aiohttp.TCPConnector(ssl=running.context or False)
        async with aiohttp.ClientSession(running.url, connector=connector) as http:
            body = {"model": "scripted-image", "prompt": "x", "response_format": "url"}
            async with http.post("/v1/images/generations", json=body) as response:
                (image,) = (await response.json())["data"]
            assert image["url"].startswith(f"{running.url}/files/")
            async with http.get(image["url"]) as response:
                assert (await response.read()).startswith(b"\x89PNG")


@pytest.mark.parametrize("tls", [False, True])
async def test_edge_answers_the_launchers_probe_on_a_socket_of_its_own(
    secured: Secured, tls: bool, tmp_path: Path
) -> None:
    path = tmp_path / "edge.socket"
    probe = edge_probe(path)
    async with stack(secured if tls else None, probe_socket=path):
        assert await probe()
    # Refused, or not there any more: from Python 3.13 on the edge removes its socket.
    with pytest.raises(OSError, match=r"refused|No such file"):
        await probe()


def test_probe_socket_replaces_a_socket_and_no_other_file(run: Run, tmp_path: Path) -> None:
    async def check() -> None:
        path = tmp_path / "edge.socket"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))  # As of a process that was killed.
        async with stack(None, probe_socket=path):
            assert await edge_probe(path)()
        file = tmp_path / "file"
        file.write_text("precious")
        with pytest.raises(ConfigError, match="probe_socket: "):
            async with stack(None, probe_socket=file):
                pass
        assert file.read_text() == "precious"

    run(check())


async def test_a_start_with_an_unusable_file_names_the_file(secured: Secured) -> None:
    secured.pair.key.write_text("nothing")
    with pytest.raises(ConfigError, match=f"tls_key: {secured.pair.key} "):
        async with stack(secured):
            pass


@pytest.mark.parametrize("tls", [False, True])
async def test_a_warning_at_the_start_off_loopback_without_tls(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture, tls: bool
) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "someone")
    async with stack(secured if tls else None, host="0.0.0.0", keys_file=file):
        pass
    warned = [r.message for r in caplog.records if "TLS is off" in r.message]
    assert len(warned) == (0 if tls else 1)
    if warned:
        assert "host: 0.0.0.0" in warned[0]
        assert "--tls-certificate" in warned[0]
