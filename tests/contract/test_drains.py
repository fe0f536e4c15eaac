"""A stop: what is under way is finished, and what must be cut is told."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.conftest import EMBEDDING, TEXT, eventually, running_server

LARGE = " ".join(["w" * 5000] * 1600)  # 8 MB
# Below the bound of what one call may have waiting.
MEDIUM = " ".join(["w" * 500] * 1600)
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
async def stopping_edge(server: InferenceServer, **config: float) -> AsyncIterator[Stopping]:
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


async def test_plain_response_that_is_being_sent_reaches_its_slow_client() -> None:
    model = ModelConfig(id="scripted", engine="scripted", engine_args={"text": LARGE})
    body = {"model": "scripted", "prompt": "x", "max_tokens": 1600}
    loop = asyncio.get_running_loop()
    async with running_server(model) as server, stopping_edge(server) as edge:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", edge.port))
            await loop.sock_sendall(client, request_bytes("/v1/completions", body))
            received = await loop.sock_recv(client, 1024)
            edge.stop.set()
            while chunk := await loop.sock_recv(client, 256 * 1024):
                received += chunk
                await asyncio.sleep(0.02)
    head, _, document = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
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
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"server_error"' in answer


async def test_idle_edge_stops_at_once() -> None:
    async with running_server(TEXT) as server:
        async with stopping_edge(server, drain_seconds=30) as edge, ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{edge.port}/health") as response:
                await response.read()  # The connection stays open.
    assert edge.stopped_after < 5


async def test_output_that_a_grpc_caller_has_not_read_outlasts_the_drain_of_its_call() -> None:
    model = ModelConfig(id="scripted", engine="scripted", engine_args={"text": MEDIUM})
    config = ServerConfig(listen="127.0.0.1:0", models=(model,), drain_seconds=30)
    server = InferenceServer(config)
    await server.start()
    await server.load()
    options = [
        ("grpc.http2.lookahead_bytes", 16 * 1024),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        call = InferenceServiceStub(channel).Generate(GenerateRequest(model="scripted", text="x"))
        await call.initial_metadata()
        drain = asyncio.create_task(server.drain())
        await asyncio.sleep(2.5)
        text = ""
        while isinstance(part := await call.read(), GenerateResponse):
            text += "".join(delta.text for delta in part.deltas)
        assert await call.code() is grpc.StatusCode.OK
        assert text == MEDIUM
        await asyncio.wait_for(drain, 10)
    await server.close()
