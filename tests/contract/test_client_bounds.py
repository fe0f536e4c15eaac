"""Clients that hold on to memory or to an engine: slow readers, silent leavers, large bodies."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web_fileresponse

from edge import client_bounds
from inference.config import ModelConfig
from tests.conftest import Stack, StartStack, eventually


@pytest.fixture
def transport() -> str:
    """The edge's clients do not depend on it."""
    return "session"


# 12 MB: more than the kernel's buffers take.
LARGE = {"text": " ".join(["w" * 7500] * 1600)}


def request_bytes(prompt: str, **members: Any) -> bytes:
    data = json.dumps({"model": "scripted", "prompt": prompt, **members}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


async def connect(stack: Stack) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.setblocking(False)
    port = int(stack.url.rpartition(":")[2])
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    return client


async def test_client_that_reads_a_little_now_and_then_is_dropped(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_bounds, "SLOWEST_BYTES_PER_SECOND", 12_000_000)
    caplog.set_level("INFO")
    model = ModelConfig(id="scripted", engine="scripted", engine_args=LARGE)
    stack = await start_stack(model, write_stall_seconds=1.0)
    loop = asyncio.get_running_loop()
    with await connect(stack) as client:
        await loop.sock_sendall(client, request_bytes("x", max_tokens=1600))
        async with asyncio.timeout(15):
            # The kernel sees acknowledgements all the time.
            while "dropping a client that reads too slowly" not in caplog.text:
                assert await loop.sock_recv(client, 16 * 1024)
                await asyncio.sleep(0.1)


async def test_client_that_reads_at_the_slowest_rate_gets_everything(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_bounds, "SLOWEST_BYTES_PER_SECOND", 2_000_000)
    model = ModelConfig(id="scripted", engine="scripted", engine_args=LARGE)
    stack = await start_stack(model, write_stall_seconds=1.0)
    loop = asyncio.get_running_loop()
    with await connect(stack) as client:
        await loop.sock_sendall(client, request_bytes("x", max_tokens=1600, user="x"))
        received = bytearray()
        while not received.endswith(b"}}}"):
            # The kernel gives no more than 64 KiB at a time.
            data = await loop.sock_recv(client, 64 * 1024)
            assert data
            received += data
            await asyncio.sleep(0.015)
    assert len(received) > 12_000_000


@pytest.mark.parametrize("transport", ["session"])
async def test_client_that_reads_faster_than_the_slowest_rate_keeps_its_download(
    start_stack: StartStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO, "edge.client_bounds")
    monkeypatch.setattr(client_bounds, "SLOWEST_BYTES_PER_SECOND", 500_000)
    monkeypatch.setattr(web_fileresponse, "NOSENDFILE", True)  # As uvloop.
    stack = await start_stack(write_stall_seconds=0.5, files_dir=tmp_path / "files")
    # The file is written in parts, of which each waits until the kernel has room for it.
    name = f"{'0' * 32}.png"
    (tmp_path / "files" / name).write_bytes(bytes(12_000_000))
    loop = asyncio.get_running_loop()
    with await connect(stack) as client:
        await loop.sock_sendall(client, f"GET /files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for _ in range(80):
            assert await loop.sock_recv(client, 32 * 1024)
            await asyncio.sleep(0.05)
    assert not caplog.records


async def test_client_that_leaves_pipelined_requests_behind_stops_the_engine(
    start_stack: StartStack,
) -> None:
    script = {"step_seconds": 0.01, "tokens": 4000}
    stack = await start_stack(ModelConfig(id="scripted", engine="scripted", engine_args=script))
    loop = asyncio.get_running_loop()
    with await connect(stack) as client:
        await loop.sock_sendall(client, request_bytes("x", max_tokens=4000) * 40)
        await eventually(lambda: stack.engine.health().generated_tokens > 5)
    await eventually(lambda: stack.engine.health().running == 0, seconds=5)
    assert stack.engine.health().generated_tokens < 1000
    await eventually(lambda: stack.edge.requests == 0)


async def test_bodies_beyond_the_budget_get_a_503_and_free_it_when_they_end(
    start_stack: StartStack,
) -> None:
    script = {"prefill_seconds": 1.0, "tokens": 1}
    model = ModelConfig(id="scripted", engine="scripted", engine_args=script)
    stack = await start_stack(model)
    stack.edge.memory.limit = 7_000_000

    async def ask(size: int) -> int:
        body = {"model": "scripted", "prompt": "x" * size}
        async with stack.http.post("/v1/completions", json=body) as response:
            if response.status == 503:
                assert "retry-after" in response.headers
            await response.read()
            return response.status

    # Small requests pass in any number.
    statuses = await asyncio.gather(*(ask(900_000) for _ in range(6)), *(ask(9) for _ in range(20)))
    assert sorted(statuses[:6]) == [200] * 3 + [503] * 3
    assert set(statuses[6:]) == {200}
    await eventually(lambda: stack.edge.memory.used == 0)
    assert await ask(900_000) == 200
