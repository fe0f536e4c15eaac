"""Cancellation, concurrency, progress and death of a real vLLM engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession

from inference.engines.base import EngineDeadError, TextEngine
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import GenerateResponse
from tests.conftest import eventually
from tests.engines.generating import chat, prepare, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_cancelled_request_stops_in_the_engine_core(engine: TextEngine) -> None:
    endless = text("Once upon a time", stopping={"ignore_eos": True})
    prepared = await prepare(engine, endless)
    begun = asyncio.Event()
    work = asyncio.create_task(engine.generate(prepared, lambda _: begun.set()))
    await begun.wait()
    assert engine.health().running == 1
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    async with asyncio.timeout(10):
        while engine.health().running:
            await asyncio.sleep(0)
    before = engine.health().generated_tokens
    # The engine core makes no more tokens than those of the next request.
    result = await run(engine, text("Hi"), 2)
    assert result.usage is not None
    assert engine.health().generated_tokens == before + result.usage.completion_tokens
    assert engine.health().last_step_age_seconds == 0.0


async def test_cancelling_during_tool_call_arguments_stops_the_engine(engine: TextEngine) -> None:
    parameters = json.dumps({"type": "object", "properties": {"story": {"type": "string"}}})
    request = chat(
        "Tell it.",
        tools=[{"name": "tell", "parameters_json": parameters}],
        tool_choice={"mode": chat_pb2.ToolChoice.MODE_REQUIRED},
        output={"n": 2},
        sampling={"seed": 1},
    )
    prepared = await prepare(engine, request)
    called = asyncio.Event()

    def listen(event: str | GenerateResponse) -> None:
        if not isinstance(event, str) and any(delta.tool_calls for delta in event.deltas):
            called.set()

    work = asyncio.create_task(engine.generate(prepared, listen))
    await called.wait()
    assert engine.health().running > 0
    work.cancel()
    await eventually(lambda: engine.health().running == 0)


async def test_priority_is_refused_without_priority_scheduling(engine: TextEngine) -> None:
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, text("Hello"), priority=5)
    assert (refusal.value.reason, refusal.value.param) == ("unsupported_parameter", "priority")
    assert engine.health().running == 0


async def test_concurrent_requests_all_finish(engine: TextEngine) -> None:
    requests = [chat(f"Write about the number {number}.") for number in range(8)]
    results = await asyncio.gather(*(run(engine, request, 24) for request in requests))
    assert all(len(result.finishes) == 1 and result.texts[0] for result in results)
    assert engine.health().running == 0


async def test_prefill_of_a_long_prompt_counts_as_progress(engine: TextEngine) -> None:
    prepared = await prepare(engine, text("word " * 1800), 1)
    ages = []
    started = asyncio.get_running_loop().time()
    work = asyncio.create_task(engine.generate(prepared, lambda _: None))
    while not work.done():
        await asyncio.sleep(0.005)
        ages.append(engine.health().last_step_age_seconds)
    took = asyncio.get_running_loop().time() - started
    await work
    assert max(ages) < took / 2, "the engine made steps although it made no output"


async def test_short_prompt_overtakes_a_long_one(engine: TextEngine) -> None:
    long = asyncio.create_task(run(engine, text("other " * 1800), 1))
    await eventually(lambda: engine.health().running == 1)
    await asyncio.sleep(0.3)  # The long prompt has begun.
    await run(engine, text("Hi"), 2)
    assert not long.done()
    await long


@pytest.mark.parametrize("stream", [False, True])
async def test_client_disconnect_from_the_edge_stops_vllm(
    engine: TextEngine, http: ClientSession, stream: bool
) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "stream": stream,
        "n": 2,
        "ignore_eos": True,
    }
    before = engine.health().generated_tokens
    request = asyncio.create_task(read_all(http, body))
    await eventually(lambda: engine.health().generated_tokens > before + 5, 60)
    request.cancel()
    await eventually(lambda: engine.health().running == 0)
    made = engine.health().generated_tokens
    async with http.post("/v1/chat/completions", json=body | {"n": 1, "max_tokens": 3}) as response:
        await response.read()
        assert response.status == 200
    assert engine.health().generated_tokens == made + 3, (
        "no token was made for the cancelled request"
    )
    assert made - before < 1000


async def read_all(http: ClientSession, body: dict[str, Any]) -> bytes:
    async with http.post("/v1/chat/completions", json=body) as response:
        return await response.read()


async def test_killed_engine_core_fails_its_requests(
    dying_engine: TextEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = dying_engine
    prepared = await prepare(engine, text("Once upon a time", stopping={"ignore_eos": True}))
    # vLLM leaves an engine core that it had to kill as a zombie, here that of another test file.
    (core,) = [
        process
        for process in psutil.Process().children()
        if process.name().startswith("VLLM::EngineCor") and process.status() != psutil.STATUS_ZOMBIE
    ]
    with pytest.raises(EngineDeadError):
        async with asyncio.timeout(60):
            await engine.generate(prepared, lambda _: core.kill())
    assert not engine.health().alive
    with pytest.raises(EngineDeadError):
        await run(engine, text("Hello"), 1)
    caplog.clear()  # vLLM's error report holds a reference to the engine.
