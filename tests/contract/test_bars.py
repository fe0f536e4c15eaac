"""The bars of load and overload; docs/reliability.md has the table of all bars."""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from inference.config import ModelConfig
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.conftest import TEXT, Stack, StartStack, eventually
from tests.contract import programs
from tests.contract.load import (
    Stream,
    check_seconds,
    measured,
    p99,
    percentile_of_gaps,
    streams,
    words,
)
from tests.contract.test_http import post
from tests.contract.test_recovery import REQUESTS
from tests.contract.test_stops import MODEL, chat

PACED = {"tokens": 60}
MIB = 1024 * 1024
SELF = psutil.Process()


@pytest.fixture
def transport() -> str:
    """The bars are those of the default transport."""
    return "session"


def scripted(step_seconds: float, **limits: Any) -> ModelConfig:
    script = {"step_seconds": step_seconds}
    return ModelConfig(id="scripted", engine="scripted", engine_args=script, **limits)


async def idle(stack: Stack, count: int) -> list[asyncio.StreamWriter]:
    """Opens connections that each had a request and stay open."""
    port = int(stack.url.rpartition(":")[2])
    kept = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        kept.append(writer)
    return kept


async def close(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
    await asyncio.gather(*(w.wait_closed() for w in writers), return_exceptions=True)


# Load held


async def test_50_paced_streams_are_whole_and_even(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.02))
    done = await streams(stack.http, 50, PACED)
    gap, first = percentile_of_gaps(done), p99([stream.first for stream in done])
    measured(f"p99 gap {1000 * gap:.1f} ms")
    measured(f"p99 first text {1000 * first:.1f} ms")
    check_seconds(gap, 0.075)
    check_seconds(first, 0.5)


async def test_unpaced_streams_reach_the_token_rate(stack: Stack) -> None:
    started = time.monotonic()
    await streams(stack.http, 32, {"tokens": 250})
    rate = 32 * 250 / (time.monotonic() - started)
    measured(f"{rate:.0f} tokens a second")
    check_seconds(1 / rate, 1 / 4000)


async def test_edge_adds_little_to_a_direct_stream(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.005))
    cue = {"tokens": 20}

    async def direct() -> tuple[float, float]:
        started = time.monotonic()
        call = stack.stub.Generate(GenerateRequest(model="scripted", text=json.dumps(cue)))
        arrivals = [time.monotonic() async for part in call if part.deltas]
        return arrivals[0] - started, (arrivals[-1] - arrivals[0]) / 19

    async def by_the_edge() -> tuple[float, float]:
        stream = await Stream().read(stack.http, cue)
        return stream.first, (stream.arrivals[-1] - stream.arrivals[0]) / 19

    await direct(), await by_the_edge()
    pairs = [(await direct(), await by_the_edge()) for _ in range(8)]
    first, token = (statistics.median(b[n] - a[n] for a, b in pairs) for n in (0, 1))
    measured(f"added to the first text {1000 * first:.1f} ms")
    measured(f"added to a token {1000 * token:.1f} ms")
    check_seconds(first, 0.003)
    check_seconds(token, 0.001)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of each connection are in this process; the usual limit is 1024 files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(4096, limits[1])), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_files")
async def test_500_idle_connections_leave_streams_even(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.02))
    await streams(stack.http, 50, {"tokens": 5})
    before = SELF.memory_info().rss
    kept = await idle(stack, 500)
    done = await streams(stack.http, 50, PACED)
    grown = (SELF.memory_info().rss - before) / MIB
    measured(f"grown {grown:.1f} MiB")
    measured(f"p99 gap {1000 * percentile_of_gaps(done):.1f} ms")
    await close(kept)
    # The clients of this test are in the same process.
    assert grown <= 30
    check_seconds(percentile_of_gaps(done), 0.075)


async def test_1000_sequential_chats_leave_nothing(stack: Stack) -> None:
    async def ask(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            status, _, _ = await post(stack, "/v1/chat/completions", json=chat())
            seconds.append(time.perf_counter() - started)
            assert status == 200
        return seconds

    await ask(200)
    rss, fds, tasks = SELF.memory_info().rss, SELF.num_fds(), len(asyncio.all_tasks())
    seconds = await ask(1000)
    grown = (SELF.memory_info().rss - rss) / MIB
    measured(f"p99 {1000 * p99(seconds):.1f} ms")
    measured(f"grown {grown:.1f} MiB")
    check_seconds(p99(seconds), 0.015)
    assert grown <= 5
    assert SELF.num_fds() <= fds
    assert len(asyncio.all_tasks()) <= tasks


async def test_mixed_requests_with_cancels_leave_no_open_file(start_stack: StartStack) -> None:
    image = ModelConfig(id="scripted-image", engine="scripted-image", engine_args={"steps": 2})
    embedding = ModelConfig(id="scripted-embedding", engine="scripted-embedding")
    stack = await start_stack(TEXT, embedding, image)
    models = {"embedding": embedding.id, "image": image.id}

    async def ask(number: int) -> None:
        kind = list(REQUESTS)[number % 4]
        path, body = REQUESTS[kind]
        body = {"model": models.get(kind, TEXT.id), **body}
        if kind == "image":
            body["size"] = "64x64"
        request = asyncio.create_task(post_bytes(stack, path, body))
        if number % 5 == 0:
            await asyncio.sleep(number % 7 / 1000)
            request.cancel()
        await asyncio.wait([request])
        assert request.cancelled() or request.result() == 200

    async def burst() -> None:
        for first in range(0, 200, 20):
            await asyncio.gather(*(ask(first + n) for n in range(20)))
        await eventually(lambda: not stack.edge.requests)

    await burst()
    before = SELF.num_fds()
    await burst()
    # Cancelled requests close their connections, and new ones are opened: at most 20.
    assert SELF.num_fds() <= before + 20


async def post_bytes(stack: Stack, path: str, body: object) -> int:
    async with stack.http.post(path, json=body) as response:
        await response.read()
        return response.status


async def test_large_embeddings_never_hold_the_loop(start_stack: StartStack) -> None:
    wide = ModelConfig(id="w", engine="scripted-embedding", engine_args={"dimensions": 1536})
    stack = await start_stack(wide)
    body = {"model": "w", "input": [f"text {n}" for n in range(64)]}
    assert await post_bytes(stack, "/v1/embeddings", body) == 200
    longest, last = 0.0, time.monotonic()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(post_bytes(stack, "/v1/embeddings", body) for _ in range(8)))
    watching.cancel()
    measured(f"longest turn {1000 * longest:.1f} ms")
    check_seconds(longest, 0.05)


async def test_edge_starts_in_two_seconds() -> None:
    async with programs.service(TEXT) as service:
        async with programs.edge(service.port):  # The service is ready, too.
            started = time.monotonic()
            async with programs.edge(service.port):
                ready = time.monotonic() - started
    code = "import time; t = time.monotonic(); import edge.app; print(time.monotonic() - t)"
    imported = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    measured(f"ready {ready:.3f} s")
    measured(f"import {float(imported.stdout):.3f} s")
    check_seconds(ready, 2)
    check_seconds(float(imported.stdout), 1)


# Overload


async def test_100_requests_at_once_fill_12_places_and_the_rest_is_refused_at_once(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(scripted(0.3, max_running=4, max_queued=8))
    cue = json.dumps({"tokens": 3})

    async def ask() -> tuple[int, str, bool, float]:
        started = time.monotonic()
        async with stack.http.post("/v1/completions", json={"prompt": cue, **MODEL}) as response:
            answer = await response.json()
            text = answer["choices"][0]["text"] if response.status == 200 else ""
            retry = "retry-after" in response.headers
            return response.status, text, retry, time.monotonic() - started

    # Open connections, as clients of a busy edge have: connecting 100 takes most of the time.
    stack.http.connector._limit = 0
    await asyncio.gather(*(post_bytes(stack, "/v1/embeddings", {}) for _ in range(100)))
    answers = await asyncio.gather(*(ask() for _ in range(100)))
    assert [a[1] for a in answers if a[0] == 200] == [words(3)] * 12
    refused = [a for a in answers if a[0] == 429]
    assert len(refused) == 88
    assert all(retry for _, _, retry, _ in refused)
    measured(f"slowest refusal {1000 * max(a[3] for a in refused):.1f} ms")
    check_seconds(max(a[3] for a in refused), 0.2)


async def test_overload_keeps_the_goodput_and_the_health_probes(start_stack: StartStack) -> None:
    # Ten requests a second are the capacity; 50 a second come.
    stack = await start_stack(
        scripted(0.04, max_running=4, max_queued=4, queue_timeout_seconds=1.0)
    )
    cue = json.dumps({"tokens": 10})
    begun, stop = time.monotonic(), asyncio.Event()
    probes: list[tuple[bool, float]] = []

    async def probe() -> None:
        while not stop.is_set():
            started = time.monotonic()
            async with stack.http.get("/health") as response:
                probes.append((response.status == 200, time.monotonic() - started))
            await asyncio.sleep(0.02)

    async def ask() -> tuple[int, float]:
        started = time.monotonic()
        status, _, _ = await post(stack, "/v1/completions", json={"prompt": cue, **MODEL})
        return status, time.monotonic() - started

    probing = asyncio.create_task(probe())
    requests = []
    for _ in range(150):
        requests.append(asyncio.create_task(ask()))
        await asyncio.sleep(0.02)
    answers = await asyncio.gather(*requests)
    stop.set()
    await probing
    taken = [seconds for status, seconds in answers if status == 200]
    goodput = len(taken) / (time.monotonic() - begun)
    measured(f"goodput {goodput:.1f} of 10 a second")
    measured(f"p99 admitted {p99(taken):.3f} s")
    measured(f"slowest probe {1000 * max(s for _, s in probes):.1f} ms")
    assert {status for status, _ in answers} <= {200, 429, 503}
    check_seconds(1 / goodput, 1 / (0.9 * 10))
    assert all(healthy for healthy, _ in probes)
    check_seconds(max(seconds for _, seconds in probes), 0.1)
    check_seconds(p99(taken), 2 * 0.4 + 1.0)


async def test_queue_timeout_of_one_second_refuses_after_one_second(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(scripted(0.01, max_running=1, queue_timeout_seconds=1.0))
    body = {"prompt": json.dumps({"tokens": 4000}), "max_tokens": 4000, **MODEL}
    first = asyncio.create_task(post(stack, "/v1/completions", json=body))
    await eventually(lambda: stack.engine.health().running)
    started = time.monotonic()
    status, _, _ = await post(stack, "/v1/completions", json={"prompt": "x", **MODEL})
    waited = time.monotonic() - started
    measured(f"waited {waited:.3f} s")
    assert status == 503
    assert waited >= 1.0
    check_seconds(waited, 0.2, 1.0)
    first.cancel()
    await asyncio.wait([first])
