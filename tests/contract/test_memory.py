"""The memory budget of an edge and of a service, by what their processes really use."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain, cycle
from typing import Any

import grpc
import psutil
import pytest
from aiohttp import ClientSession

from inference.config import ModelConfig
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, OutputOptions, Stopping
from isthmus.v1.image_pb2 import GenerateImageRequest, ImageFormat
from tests.conftest import eventually
from tests.contract import programs
from tests.contract.load import measured

MIB = 1024 * 1024
BUDGET = 128 * MIB
# Bytes of a process for each byte that counts in the budget: the copies of Python and gRPC.
FACTOR = 4
# gRPC holds as much again of callers that read nothing, and it copies each message.
SERVICE_FACTOR = 6


@pytest.fixture
def transport() -> str:
    """The budget does not depend on it."""
    return "session"


TEXT = ModelConfig(
    id="text",
    engine="scripted",
    engine_args={
        "text": " ".join(["w" * 750_000] * 16),  # 12 MB
        "tokens": 16,
        "tokens_per_step": 16,
        "context_length": 100_000_000,
    },
)
# Its requests wait for a minute.
BUSY = ModelConfig(
    id="busy",
    engine="scripted",
    engine_args={"prefill_seconds": 60.0, "context_length": 100_000_000},
)
VECTORS = ModelConfig(
    id="vectors",
    engine="scripted-embedding",
    engine_args={"dimensions": 1536},
)
IMAGES = ModelConfig(
    id="images",
    engine="scripted-image",
    engine_args={"steps": 1, "noise": True, "width": 1024, "height": 1024},
)


class Growth:
    """By how much a process has grown, at its largest."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = process.memory_info().rss
        self.bytes = 0

    async def watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def growth_of(program: programs.Program) -> AsyncIterator[Growth]:
    growth = Growth(psutil.Process(program.process.pid))
    watching = asyncio.create_task(growth.watch())
    try:
        yield growth
    finally:
        watching.cancel()
        measured(f"{growth.bytes / MIB:.0f} MiB for a budget of {BUDGET / MIB:.0f} MiB")


async def rests(program: programs.Program) -> None:
    """Waits until the process has used hardly any CPU time for 2 s."""
    process = psutil.Process(program.process.pid)
    async with asyncio.timeout(120):
        used = -1.0
        while used < (used := sum(process.cpu_times()[:2])) - 0.05:
            await asyncio.sleep(2)


async def ask_and_read_nothing(client: socket.socket, port: int, path: str, body: Any) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    data = json.dumps(body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(
        client, head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data
    )


# 2 MB each.
IMAGE = {
    "model": "images",
    "prompt": "x",
    "n": 5,
    "output_format": "jpeg",
    "output_compression": 100,
}
SLOW_READERS = [
    ("completions", {"model": "text", "prompt": "x", "max_tokens": 16}),
    ("completions", {"model": "text", "prompt": "x", "max_tokens": 16, "stream": True}),
    ("embeddings", {"model": "vectors", "input": ["x"] * 1500}),
    ("images/generations", IMAGE),
    (
        "images/generations",
        IMAGE | {"stream": True, "partial_images": 1},
    ),
]
BODY = json.dumps({"model": "busy", "prompt": "x" * 8_000_000}).encode()


def limited(budget: int) -> tuple[str, str]:
    return "--memory-budget-bytes", str(budget)


def is_answered(client: socket.socket) -> bool:
    """Whether a response has begun, or the edge has closed the connection."""
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


async def status_of(http: ClientSession) -> int:
    headers = {"content-type": "application/json"}
    async with http.post("/v1/completions", data=io.BytesIO(BODY), headers=headers) as response:
        await response.read()
        return response.status


async def test_edge_stays_within_its_budget_under_slow_readers_and_large_bodies() -> None:
    async with AsyncExitStack() as ends:
        enter = ends.enter_async_context
        service = await enter(
            programs.service(TEXT, BUSY, VECTORS, IMAGES, options=limited(4096 * MIB))
        )
        edge = await enter(programs.edge(service.port, options=limited(BUDGET)))
        http = await enter(ClientSession(f"http://127.0.0.1:{edge.port}"))
        async with growth_of(edge) as growth:
            uploads = [asyncio.create_task(status_of(http)) for _ in range(24)]
            readers = [ends.enter_context(socket.socket()) for _ in range(160)]
            for reader, (path, body) in zip(readers, cycle(SLOW_READERS), strict=False):
                await ask_and_read_nothing(reader, edge.port, path, body)
            await eventually(lambda: all(map(is_answered, readers)), 120)
            await rests(edge)
        statuses = [task.result() for task in uploads if task.done()]
        for task in uploads:
            task.cancel()
        # As many as fit into half of the budget wait for the engine.
        assert set(statuses) == {503}
        assert len(statuses) >= 24 - BUDGET // 2 // len(BODY)
        assert growth.bytes <= FACTOR * BUDGET


async def test_service_stays_within_its_budget_under_prompts_vectors_and_unread_output() -> None:
    async with AsyncExitStack() as ends:
        enter = ends.enter_async_context
        service = await enter(
            programs.service(TEXT, BUSY, VECTORS, IMAGES, options=limited(BUDGET))
        )
        channel = await enter(grpc.aio.insecure_channel(f"127.0.0.1:{service.port}", SENT))
        await channel.channel_ready()
        await eventually(lambda: "images: ready" in service.log.read_text(), 60)
        async with growth_of(service) as growth:
            # One after the other: the budget does not count what gRPC still receives.
            prompts, fitting = [], BUDGET // 2 // 8_000_000
            for _ in range(24):
                prompts.append(opened(channel, *CALLS[0]))
                await asyncio.wait([asyncio.ensure_future(prompts[-1].code())], timeout=0.5)
            calls = [[opened(channel, *call) for _ in range(48)] for call in CALLS[1:]]
            await eventually(lambda: sum(call.done() for call in prompts) >= 24 - fitting, 120)
            # All output is made, or refused, and nobody reads it.
            await rests(service)
        codes = [await call.code() for call in prompts if call.done()]
        for call in chain(prompts, *calls):
            call.cancel()
        assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert growth.bytes <= SERVICE_FACTOR * BUDGET


# Without the probe gRPC takes 64 KiB of a response that nobody reads, and no more.
SENT = (("grpc.max_send_message_length", -1), ("grpc.http2.bdp_probe", 0))
CALLS: list[tuple[str, Any]] = [
    ("Generate", GenerateRequest(model="busy", text="x" * 8_000_000)),
    (
        "Generate",
        GenerateRequest(
            model="text",
            text="x",
            stopping=Stopping(max_tokens=16),
            output=OutputOptions(single_message=True),
        ),
    ),
    ("Embed", EmbedRequest(model="vectors", inputs=[EmbedInput(text="x")] * 1500)),
    (
        "GenerateImage",
        GenerateImageRequest(
            model="images", prompt="x", n=5, format=ImageFormat.IMAGE_FORMAT_JPEG, quality=100
        ),
    ),
]


def opened(channel: grpc.aio.Channel, method: str, request: Any) -> Any:
    """A call whose response nobody reads."""
    rpc: Any = channel.unary_stream(
        f"/isthmus.v1.InferenceService/{method}", request_serializer=type(request).SerializeToString
    )
    return rpc(request)
