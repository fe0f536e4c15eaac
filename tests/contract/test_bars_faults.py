"""The bars of faults inside one process; docs/reliability.md has the table of all bars."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge.upstream.replica import Replica
from inference.config import ModelConfig
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually, running_server
from tests.contract.load import SLACK, Stream, check_seconds, measured
from tests.contract.test_bars import scripted
from tests.contract.test_health import NOT_SERVING, SERVING, Watcher, hang, watched
from tests.contract.test_http import post
from tests.contract.test_recovery import REQUESTS, edge_of
from tests.contract.test_stops import MODEL, chat, slow_model, stopped


async def seconds_until_idle(stack: Stack) -> float:
    started = time.monotonic()
    await eventually(lambda: stack.engine.health().running == 0)
    return time.monotonic() - started


@pytest.mark.parametrize("stream", [True, False])
async def test_engine_stops_at_once_when_a_client_leaves(
    start_stack: StartStack, stream: bool
) -> None:
    stack = await start_stack(scripted(0.1))
    cue = json.dumps({"tokens": 4000})
    body = {"prompt": cue, "max_tokens": 4000, "stream": stream, **MODEL}
    request = asyncio.create_task(stack.http.post("/v1/completions", json=body))
    await eventually(lambda: stack.engine.health().generated_tokens >= 3)
    if stream:
        (await request).close()
    else:
        request.cancel()
    made = stack.engine.health().generated_tokens
    seconds = await seconds_until_idle(stack)
    measured(f"{1000 * seconds:.1f} ms")
    check_seconds(seconds, 0.05)
    await stopped(stack)
    assert stack.engine.health().generated_tokens <= made + 2


@pytest.mark.parametrize("stream", [True, False])
async def test_silent_engine_stops_at_once_when_a_client_leaves(
    start_stack: StartStack, stream: bool
) -> None:
    stack = await start_stack(scripted(0.0), header_hold_seconds=0.05)
    body = {"prompt": json.dumps({"fail": "hang"}), "stream": stream, **MODEL}
    request = asyncio.create_task(post(stack, "/v1/completions", json=body))
    await eventually(lambda: stack.engine.health().generated_tokens == 2)
    await asyncio.sleep(0.1)
    request.cancel()
    seconds = await seconds_until_idle(stack)
    measured(f"{1000 * seconds:.1f} ms")
    check_seconds(seconds, 0.05)
    await stopped(stack)


async def test_200_cancels_free_every_place(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.005, max_running=50))
    chance = random.Random(7)
    body = {"prompt": json.dumps({"tokens": 4000}), "max_tokens": 4000, **MODEL}

    async def cancelled(number: int) -> None:
        request = asyncio.create_task(
            post(stack, "/v1/completions", json={**body, "stream": number % 2 == 0})
        )
        await asyncio.sleep(chance.uniform(0, 1))
        request.cancel()
        await asyncio.wait([request])

    stack.http.connector._limit = 0
    await asyncio.gather(*(cancelled(number) for number in range(200)))
    seconds = await seconds_until_idle(stack)
    measured(f"{1000 * seconds:.1f} ms after the last cancel")
    admission = stack.server.registry.models[0].admission
    await eventually(lambda: (admission.running, admission.queued) == (0, 0), SLACK * 1.0 - seconds)
    started = time.monotonic()
    status, answer, _ = await post(stack, "/v1/chat/completions", json=chat(max_tokens=3))
    assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
    check_seconds(time.monotonic() - started, 0.05)


@pytest.mark.parametrize("stream", [True, False])
async def test_deadline_ends_a_request_on_time(start_stack: StartStack, stream: bool) -> None:
    stack = await start_stack(slow_model(), header_hold_seconds=0.1)
    body = {"prompt": "x", "max_tokens": 4000, "stream": stream, **MODEL}
    started = time.monotonic()
    async with stack.http.post(
        "/v1/completions", json=body, headers={"x-request-timeout": "0.5"}
    ) as response:
        text = await response.text()
    seconds = time.monotonic() - started
    measured(f"{seconds:.3f} s")
    assert response.status == (200 if stream else 504)
    assert "error" in json.loads(text.rstrip().rpartition("data: ")[2])
    assert "[DONE]" not in text
    assert seconds >= 0.5
    check_seconds(seconds, 0.1, 0.5)
    await stopped(stack)


async def test_wedged_engine_is_not_serving_at_its_limit() -> None:
    model = scripted(0.0, slow_step_seconds=0.5)
    async with watched(model) as (_, channel):
        watcher = Watcher(channel)
        call = await hang(channel)
        started = time.monotonic()
        await eventually(lambda: watcher.told == [SERVING, NOT_SERVING])
        seconds = time.monotonic() - started
        measured(f"{seconds:.3f} s for a limit of 0.5 s")
        # The engine's step began at most 0.1 s earlier.
        assert seconds >= 0.4
        check_seconds(seconds, 0.5, 0.5)
        call.cancel()
        await watcher.leave()


async def test_stall_limit_ends_a_stream_on_time(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.0, output_gap_seconds=0.5))
    stream = await Stream().read(stack.http, {"fail": "hang"})
    seconds = stream.ended_at - stream.arrivals[-1]
    measured(f"{seconds:.3f} s for a limit of 0.5 s")
    assert stream.ended == "error"
    assert seconds >= 0.4
    check_seconds(seconds, 0.5, 0.5)


MEMORY = json.dumps({"fail": "memory"})
KINDS_WITH_MEMORY = [
    (EMBEDDING, "/v1/embeddings", {"input": MEMORY}, {"input": "Hi"}),
    (IMAGE, "/v1/images/generations", {"prompt": MEMORY}, {"prompt": "Hi", "size": "64x64"}),
]


@pytest.mark.parametrize(
    ("model", "path", "bad", "good"), KINDS_WITH_MEMORY, ids=["embed", "image"]
)
async def test_first_out_of_memory_fails_one_request_and_the_second_ends_the_engine(
    start_stack: StartStack, model: ModelConfig, path: str, bad: dict[str, Any], good: Any
) -> None:
    stack = await start_stack(TEXT, model)
    answers = await asyncio.gather(
        *(
            post(stack, path, json={"model": model.id, **(bad if n == 1 else good)})
            for n in range(4)
        )
    )
    assert [status for status, _, _ in answers] == [200, 503, 200, 200]
    assert "ran out of memory" in answers[1][1]["error"]["message"]
    assert "retry-after" in answers[1][2]
    assert not stack.server.registry.dead.is_set()
    status, _, _ = await post(stack, path, json={"model": model.id, **bad})
    assert status == 503
    assert stack.server.registry.dead.is_set()


@pytest.mark.parametrize("kind", REQUESTS)
async def test_refused_connection_gets_exactly_one_retry(
    kind: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_call = Replica.open

    def noting(replica: Replica, *arguments: Any) -> Any:
        opened.append(replica.address)
        return open_call(replica, *arguments)

    monkeypatch.setattr(Replica, "open", noting)
    async with AsyncExitStack() as ends:
        models = (TEXT, EMBEDDING, IMAGE)
        servers = [await ends.enter_async_context(running_server(*models)) for _ in range(3)]
        client = await ends.enter_async_context(
            edge_of(*(server.port for server in servers), transport=transport)
        )
        await eventually(client.edge.router.ready)
        for server in servers[:2]:
            await server.close()
        await eventually(lambda: sum(r.serving for r in client.replicas) == 1)
        retried = 0
        for _ in range(12):
            opened.clear()
            for replica in client.replicas:
                replica.serving = True  # The health watch has not noticed yet.
            status, _ = await client.ask(kind)
            # Two of three are down, and a request may meet both.
            assert len(opened) == len(set(opened)) <= 2
            assert status == (200 if opened[-1].endswith(f":{servers[2].port}") else 503)
            retried += len(opened) - 1
        assert retried


STATUS = {"start": 500, "mid": 500, "die": 503}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fail", STATUS)
async def test_failure_of_the_engine_is_never_retried(
    transport: str, fail: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(TEXT) as one, running_server(TEXT) as two:
        started: list[Any] = []
        for server in (one, two):
            engine: Any = server.registry.models[0].engine
            monkeypatch.setattr(engine, "generate", counting(engine.generate, started))
        async with edge_of(one.port, two.port, transport=transport) as client:
            await eventually(client.edge.router.ready)
            body = {"prompt": json.dumps({"fail": fail}), "stream": stream, **MODEL}
            async with client.http.post("/v1/completions", json=body) as response:
                text = await response.text()
                assert response.status == (200 if stream and fail != "start" else STATUS[fail])
            assert '"error"' in text
            assert len(started) == 1


def counting(generate: Any, started: list[Any]) -> Any:
    async def counted(*arguments: Any) -> None:
        started.append(arguments)
        await generate(*arguments)

    return counted
