"""A stop: what is under way is finished, and what must be cut is told."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.certificates import Authority
from tests.conftest import EMBEDDING, TEXT, eventually, running_server

LARGE = " ".join(["w" * 7500] * 1600)  # 12 MB, three times what a kernel takes
SLOW_EMBEDDING = ModelConfig(
    id=EMBEDDING.id, engine="scripted-embedding", engine_args={"seconds": 30.0}
)


class Stopping:
    """An edge that stops when the test says so."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.port = 0
        self.stopped_after = 0.0


@asynccontextmanager
async def stopping_edge(server: InferenceServer, **config: Any) -> AsyncIterator[Stopping]:
    edge = Stopping()
    serves = asyncio.Event()

    async def run() -> None:
        upstreams = (f"127.0.0.1:{server.port}",)
        async with serving(
            EdgeConfig(port=0, upstreams=upstreams, settle_seconds=0.0, **config)
        ) as (running, port):
            edge.port = port
            await eventually(running.router.ready)
            serves.set()
            await edge.stop.wait()
            started = time.monotonic()
        edge.stopped_after = time.monotonic() - started

    task = asyncio.create_task(run())
    await serves.wait()
    try:
        yield edge
    finally:
        edge.stop.set()
        await task


def request_bytes(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


@pytest.mark.parametrize("what", ["document", "file"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_response_that_is_being_sent_reaches_its_slow_client(
    what: str, secure: bool, tmp_path: Path
) -> None:
    model = ModelConfig(id="scripted", engine="scripted", engine_args={"text": LARGE})
    config: dict[str, Any] = {"files_dir": tmp_path / "files"}
    context = None
    if secure:
        authority = Authority(tmp_path)
        pair = authority.pair("localhost")
        config |= {"tls_certificate": pair.certificate, "tls_key": pair.key}
        context = ssl.create_default_context(cafile=authority.path)
    name, content = f"{'0' * 32}.png", os.urandom(len(LARGE))
    data = f"GET /files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    if what == "document":
        body = {"model": "scripted", "prompt": "x", "max_tokens": 1600}
        data = request_bytes("/v1/completions", body)
    loop = asyncio.get_running_loop()

    def read_slowly(edge: Stopping) -> tuple[bytes, int]:
        """All that comes, and how much of it had come when the edge had stopped."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect(("127.0.0.1", edge.port))
            client = connection
            if context is not None:
                client = context.wrap_socket(connection, server_hostname="localhost")
            with client:
                client.sendall(data)
                received = bytearray(client.recv(1024))
                loop.call_soon_threadsafe(edge.stop.set)
                at_the_stop = 0
                while chunk := client.recv(256 * 1024):
                    received += chunk
                    at_the_stop = at_the_stop or (len(received) if edge.stopped_after else 0)
                    time.sleep(len(chunk) / 3_000_000)
                    if len(received) > len(LARGE) and received.endswith((b"}}}", content[-99:])):
                        break
                return bytes(received), at_the_stop

    async with running_server(model) as server, stopping_edge(server, **config) as edge:
        (tmp_path / "files" / name).write_bytes(content)
        received, at_the_stop = await asyncio.to_thread(read_slowly, edge)
    # The process would have ended: the kernel must have had the rest.
    assert at_the_stop == 0 or at_the_stop > len(received) // 2
    head, _, document = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    if what == "file":
        assert document == content
    else:
        assert json.loads(document)["choices"][0]["text"] == LARGE


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ],
)
async def test_request_that_outlasts_the_drain_gets_a_503(
    path: str, body: dict[str, object]
) -> None:
    text = ModelConfig(id="scripted", engine="scripted", engine_args={"prefill_seconds": 30.0})
    async with running_server(text, SLOW_EMBEDDING) as server:
        async with stopping_edge(server, drain_seconds=0.3) as edge, ClientSession() as http:
            model = EMBEDDING.id if "embeddings" in path else "scripted"
            url = f"http://127.0.0.1:{edge.port}{path}"
            request = asyncio.create_task(http.post(url, json={"model": model, **body}))
            await eventually(lambda: server.registry.running_calls)
            edge.stop.set()
            response = await request
            assert response.status == 503
            assert (await response.json())["error"]["type"] == "server_error"
            assert "retry-after" in response.headers


async def test_request_whose_body_is_still_coming_at_the_end_of_the_drain_gets_a_503() -> None:
    async with running_server(TEXT) as server:
        async with stopping_edge(server, drain_seconds=0.3) as edge:
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            writer.write(request_bytes("/v1/completions", {"prompt": "x"})[:-3])
            await writer.drain()
            await asyncio.sleep(0.1)
            edge.stop.set()
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"server_error"' in answer


async def test_idle_edge_stops_at_once() -> None:
    async with running_server(TEXT) as server:
        async with stopping_edge(server, drain_seconds=30) as edge, ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{edge.port}/health") as response:
                await response.read()  # The connection stays open.
    assert edge.stopped_after < 5


@asynccontextmanager
async def slow_network(port: int, bytes_per_second: int) -> AsyncIterator[int]:
    """A port that forwards one connection to another port; what comes back is read slowly."""
    loop = asyncio.get_running_loop()

    async def pump(source: socket.socket, target: socket.socket, pause: float) -> None:
        with suppress(ConnectionError):
            while data := await loop.sock_recv(source, 16 * 1024):
                await loop.sock_sendall(target, data)
                await asyncio.sleep(pause)

    async def forward(listener: socket.socket, upstream: socket.socket) -> None:
        await loop.sock_connect(upstream, ("127.0.0.1", port))
        client, _ = await loop.sock_accept(listener)
        with client:
            pause = 16 * 1024 / bytes_per_second
            await asyncio.gather(pump(client, upstream, 0), pump(upstream, client, pause))

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as upstream:
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        for each in (listener, upstream):
            each.setblocking(False)
        forwarding = asyncio.create_task(forward(listener, upstream))
        yield listener.getsockname()[1]
        forwarding.cancel()
        await asyncio.wait([forwarding])


async def test_output_that_is_still_on_its_way_to_a_grpc_caller_outlasts_the_drain() -> None:
    # 4 MB: more than the buffers of gRPC and the kernel take.
    text = " ".join(["w" * 2500] * 1600)
    model = ModelConfig(id="scripted", engine="scripted", engine_args={"text": text})
    config = ServerConfig(listen="127.0.0.1:0", models=(model,), drain_seconds=30)
    server = InferenceServer(config)
    await server.start()
    await server.load()
    request = GenerateRequest(model="scripted", text="x")
    request.output.single_message = True
    async with slow_network(server.port, 1_500_000) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = InferenceServiceStub(channel).Generate(request)
            first = asyncio.create_task(call.read())
            await eventually(lambda: server.registry.models[0].engine.health().generated_tokens)
            drain = asyncio.create_task(server.drain())
            part = await first
            assert isinstance(part, GenerateResponse)
            assert part.deltas[0].text == text
            assert await call.read() is grpc.aio.EOF
            await asyncio.wait_for(drain, 10)
    await server.close()
