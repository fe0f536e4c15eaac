"""Cancelled requests stop the engine's work and release their permits and queue places."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import grpc
import pytest

from isthmus.v1.generate_pb2 import GenerateRequest
from tests.conftest import TEXT, Stack, StartStack, eventually
from tests.contract.test_http import post

SLOW = {"step_seconds": 0.01, "tokens": 4000}


def slow_model(**changes: Any) -> Any:
    return type(TEXT)(id="scripted", engine="scripted", engine_args=SLOW | changes)


def chat(**parameters: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "x"}]} | parameters


MODEL = {"model": "scripted"}


async def stopped(stack: Stack) -> None:
    """Waits until the engine is idle; then it makes no more output and no permit is held."""
    served = stack.server.registry.models[0]
    await eventually(lambda: served.engine.health().running == 0)
    made = served.engine.health().generated_tokens
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert served.engine.health().generated_tokens == made
    assert made < 4000
    assert served.admission.running == 0
    assert stack.server.registry.running_calls == 0
    await eventually(lambda: stack.edge.requests == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("silent", [False, True])
async def test_client_disconnect_stops_the_engine(
    start_stack: StartStack, stream: bool, silent: bool
) -> None:
    stack = await start_stack(slow_model(**({"fail": "hang"} if silent else {})))
    request = asyncio.create_task(post(stack, "/v1/chat/completions", json=chat(stream=stream)))
    await eventually(lambda: stack.engine.health().generated_tokens >= 2)
    request.cancel()
    await stopped(stack)


async def test_disconnect_during_a_stream_stops_the_engine(start_stack: StartStack) -> None:
    stack = await start_stack(slow_model())
    async with stack.http.post("/v1/chat/completions", json=chat(stream=True)) as response:
        await response.content.readany()
        response.close()
    await stopped(stack)


async def test_request_cancelled_in_the_queue_never_reaches_the_engine(
    start_stack: StartStack,
) -> None:
    model = type(TEXT)(id="scripted", engine="scripted", engine_args=SLOW, max_running=1)
    stack = await start_stack(model)
    served = stack.server.registry.models[0]
    first = asyncio.create_task(post(stack, "/v1/chat/completions", json=chat()))
    await eventually(lambda: served.admission.running == 1)
    second = asyncio.create_task(post(stack, "/v1/chat/completions", json=chat(stream=True)))
    await eventually(lambda: served.admission.queued == 1)
    second.cancel()
    await eventually(lambda: served.admission.queued == 0)
    assert stack.engine.health().running == 1
    first.cancel()
    await stopped(stack)


async def test_60_cancelled_requests_release_their_permits(start_stack: StartStack) -> None:
    stack = await start_stack(slow_model())
    requests = [
        asyncio.create_task(post(stack, "/v1/chat/completions", json=chat(stream=n % 2 == 0)))
        for n in range(60)
    ]
    await eventually(lambda: stack.engine.health().generated_tokens > 60)
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    await stopped(stack)
    status, answer, _ = await post(stack, "/v1/chat/completions", json=chat(max_tokens=1))
    assert (status, answer["usage"]["completion_tokens"]) == (200, 1)


async def test_cancelled_grpc_call_stops_the_engine(start_stack: StartStack) -> None:
    stack = await start_stack(slow_model())
    call = stack.stub.Generate(GenerateRequest(model="scripted", text="x"))
    await call.read()
    call.cancel()
    await stopped(stack)


async def test_grpc_deadline_stops_the_engine(start_stack: StartStack) -> None:
    stack = await start_stack(slow_model())
    call = stack.stub.Generate(GenerateRequest(model="scripted", text="x"), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stopped(stack)


async def test_admission_accepts_exactly_max_running_plus_max_queued(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = type(TEXT)(
        id="scripted",
        engine="scripted",
        engine_args={"tokens": 3},
        max_running=4,
        max_queued=8,
    )
    stack = await start_stack(model)
    all_have_arrived = asyncio.Event()
    generate = stack.engine.generate

    async def generate_later(*arguments: Any) -> None:
        await all_have_arrived.wait()
        await generate(*arguments)

    monkeypatch.setattr(stack.engine, "generate", generate_later)
    posts = [
        asyncio.create_task(post(stack, "/v1/chat/completions", json=chat())) for _ in range(60)
    ]
    await eventually(lambda: sum(task.done() for task in posts) >= 48, 60)
    all_have_arrived.set()
    answers = await asyncio.gather(*posts)
    taken = [answer for status, answer, _ in answers if status == 200]
    refused = [(answer, headers) for status, answer, headers in answers if status == 429]
    assert (len(taken), len(refused)) == (12, 48)
    assert {answer["choices"][0]["message"]["content"] for answer in taken} == {"w0 w1 w2 "}
    for answer, headers in refused:
        assert answer["error"]["code"] == "server_overloaded"
        assert answer["error"]["type"] == "requests"
        assert int(headers["retry-after"]) >= 1


async def test_queue_timeout_is_503(start_stack: StartStack) -> None:
    model = type(TEXT)(
        id="scripted",
        engine="scripted",
        engine_args=SLOW,
        max_running=1,
        queue_timeout_seconds=0.2,
    )
    stack = await start_stack(model)
    first = asyncio.create_task(post(stack, "/v1/chat/completions", json=chat()))
    await eventually(lambda: stack.engine.health().running == 1)
    status, answer, headers = await post(stack, "/v1/chat/completions", json=chat(stream=True))
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert "retry-after" in headers
    first.cancel()
    await stopped(stack)


@pytest.mark.parametrize("transport", ["session"])
async def test_queue_is_bounded_by_bytes_as_well_as_by_calls(start_stack: StartStack) -> None:
    model = type(TEXT)(
        id="scripted",
        engine="scripted",
        engine_args=SLOW,
        max_running=1,
    )
    stack = await start_stack(model)
    stack.server.registry.memory.limit = 6_000_000
    running = asyncio.create_task(post(stack, "/v1/completions", json={"prompt": "x", **MODEL}))
    await eventually(lambda: stack.engine.health().running == 1)
    body = {"prompt": "x" * 1_000_000, **MODEL}
    waiting = [asyncio.create_task(post(stack, "/v1/completions", json=body)) for _ in range(6)]
    await eventually(lambda: sum(task.done() for task in waiting) == 4)
    assert {task.result()[0] for task in waiting if task.done()} == {429}
    assert stack.server.registry.models[0].admission.queued == 2
    for task in (running, *waiting):
        task.cancel()
    await stopped(stack)


async def test_prompt_that_cannot_fit_is_refused_before_it_waits(start_stack: StartStack) -> None:
    model = type(TEXT)(id="scripted", engine="scripted", engine_args=SLOW, max_running=1)
    stack = await start_stack(model)
    stack.engine.characters_a_token = 512
    running = asyncio.create_task(post(stack, "/v1/completions", json={"prompt": "x", **MODEL}))
    await eventually(lambda: stack.engine.health().running == 1)
    body = io.BytesIO(json.dumps({"prompt": "x" * 12_000_000, **MODEL}).encode())
    status, answer, _ = await post(
        stack, "/v1/completions", data=body, headers={"content-type": "application/json"}
    )
    assert status == 400
    assert "maximum context length is 4096 tokens" in answer["error"]["message"]
    assert stack.server.registry.models[0].admission.queued == 0
    running.cancel()
    await stopped(stack)


@pytest.mark.parametrize("transport", ["session"])
async def test_retry_after_grows_with_the_queue_and_the_time_of_a_call(
    start_stack: StartStack,
) -> None:
    script = {"step_seconds": 0.4, "tokens_per_step": 10, "tokens": 10}
    model = type(TEXT)(
        id="scripted", engine="scripted", engine_args=script, max_running=1, max_queued=12
    )
    stack = await start_stack(model)
    posts = [
        asyncio.create_task(post(stack, "/v1/completions", json={"prompt": "x", **MODEL}))
        for _ in range(13)
    ]
    admission = stack.server.registry.models[0].admission
    await eventually(lambda: admission.queued == 12)
    await eventually(lambda: admission.queued == 9, 20)  # Some have run: the rate is known.
    more = [
        asyncio.create_task(post(stack, "/v1/completions", json={"prompt": "x", **MODEL}))
        for _ in range(20)
    ]
    await eventually(lambda: sum(task.done() for task in more) >= 17)
    refused = [task.result() for task in more if task.done()]
    waits = {int(headers["retry-after"]) for status, _, headers in refused if status == 429}
    # About 12 calls of 0.4 s wait.
    assert min(waits) >= 3
    for task in (*more, *posts):
        task.cancel()
    await asyncio.gather(*more, *posts, return_exceptions=True)
    await stopped(stack)


@pytest.mark.parametrize("transport", ["session"])
async def test_retry_after_does_not_count_the_time_in_which_nobody_asked(
    start_stack: StartStack,
) -> None:
    script = {"step_seconds": 0.02, "tokens": 10}
    model = type(TEXT)(
        id="scripted", engine="scripted", engine_args=script, max_running=1, max_queued=8
    )
    stack = await start_stack(model)
    ask = {"prompt": "x", **MODEL}
    for _ in range(2):
        assert (await post(stack, "/v1/completions", json=ask))[0] == 200
    await asyncio.sleep(1.5)
    posts = [asyncio.create_task(post(stack, "/v1/completions", json=ask)) for _ in range(20)]
    await eventually(lambda: sum(task.done() for task in posts) >= 11)
    answers = [task.result() for task in posts if task.done()]
    waits = [int(headers["retry-after"]) for status, _, headers in answers if status == 429]
    assert len(waits) == 11
    # Eight calls of 0.2 s wait.
    assert max(waits) <= 2
    for task in posts:
        task.cancel()
    await asyncio.gather(*posts, return_exceptions=True)
    await stopped(stack)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "limits"),
    [
        ({"prefill_seconds": 30.0}, {"first_output_seconds": 0.3}),
        ({"fail": "hang"}, {"output_gap_seconds": 0.3}),
    ],
)
async def test_output_that_stalls_is_a_504_or_an_error_event(
    start_stack: StartStack, script: dict[str, Any], limits: dict[str, float], stream: bool
) -> None:
    model = type(TEXT)(id="scripted", engine="scripted", engine_args=script, **limits)
    stack = await start_stack(model, header_hold_seconds=0.1)
    body = {"prompt": "x", "stream": stream, **MODEL}
    async with asyncio.timeout(5):
        async with stack.http.post("/v1/completions", json=body) as response:
            text = await response.text()
    if not stream:
        assert response.status == 504
        assert json.loads(text)["error"]["message"] == "The model made no output in time."
    else:
        assert response.status == 200
        assert "no output in time" in text.rpartition("data: ")[2]
        assert ("w0 " in text) == ("fail" in script), "what was made before is kept"
    await stopped(stack)


async def test_best_of_is_no_stall_although_its_output_comes_at_its_end(
    start_stack: StartStack,
) -> None:
    model = type(TEXT)(
        id="scripted",
        engine="scripted",
        engine_args={"step_seconds": 0.05, "tokens": 30},
        first_output_seconds=0.3,
        output_gap_seconds=0.3,
    )
    stack = await start_stack(model)
    status, _, _ = await post(
        stack, "/v1/completions", json={"prompt": "x", "best_of": 2, "max_tokens": 30, **MODEL}
    )
    assert status == 200


async def test_each_choice_takes_a_permit(start_stack: StartStack) -> None:
    model = type(TEXT)(id="scripted", engine="scripted", engine_args=SLOW, max_running=4)
    stack = await start_stack(model)
    request = asyncio.create_task(post(stack, "/v1/chat/completions", json=chat(n=3)))
    await eventually(lambda: stack.server.registry.models[0].admission.running == 3)
    request.cancel()
    await stopped(stack)


async def test_draining_server_finishes_running_requests(start_stack: StartStack) -> None:
    stack = await start_stack(slow_model(tokens=40))
    requests = [
        asyncio.create_task(post(stack, "/v1/chat/completions", json=chat())) for _ in range(5)
    ]
    await eventually(lambda: stack.engine.health().running == 5)
    drain = asyncio.create_task(stack.server.drain())
    await eventually(lambda: not stack.edge.router.ready())
    async with stack.http.get("/ready") as response:
        assert response.status == 503
    status, _, headers = await post(stack, "/v1/chat/completions", json=chat())
    assert status == 503
    assert "retry-after" in headers
    for status, answer, _ in await asyncio.gather(*requests):
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 40
    await drain


async def test_draining_edge_sends_connection_close(start_stack: StartStack) -> None:
    stack = await start_stack()
    stack.edge.draining = True
    async with stack.http.get("/health") as response:
        assert response.headers["connection"] == "close"


async def test_stopping_edge_ends_its_streams_with_an_error_event(
    start_stack: StartStack,
) -> None:
    from edge.app import serving

    stack = await start_stack(slow_model())
    config = type(stack.edge.config)(
        port=0,
        upstreams=stack.edge.config.upstreams,
        transport=stack.edge.config.transport,
        settle_seconds=0.0,
        drain_seconds=0.2,
    )
    async with serving(config) as (edge, port):
        await eventually(edge.router.ready)
        response = await stack.http.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json=chat(stream=True)
        )
        await response.content.readany()
        reading = asyncio.create_task(response.read())
    body = await reading
    last = json.loads(body.decode().rstrip().rpartition("data: ")[2])
    assert last["error"]["type"] == "server_error"
    assert b"[DONE]" not in body
    await stopped(stack)


@pytest.mark.parametrize("transport", ["session"])
async def test_large_matrices_of_vectors_take_a_permit_for_each_mebibyte(
    start_stack: StartStack,
) -> None:
    script = {"dimensions": 1024, "seconds": 0.5}
    model = type(TEXT)(id="vectors", engine="scripted-embedding", engine_args=script, max_running=4)
    stack = await start_stack(model)
    body = {"model": "vectors", "input": ["x"] * 700}  # 2.7 MiB of vectors.
    posts = [asyncio.create_task(post(stack, "/v1/embeddings", json=body)) for _ in range(3)]
    admission = stack.server.registry.models[0].admission
    await eventually(lambda: admission.running)
    assert (admission.running, stack.engine.health().running) == (3, 1)
    assert [status for status, _, _ in await asyncio.gather(*posts)] == [200] * 3
