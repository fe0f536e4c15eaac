"""Parameters and routes of vLLM's API, on both faces, with a scripted engine."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.conftest import Stack
from tests.contract.test_grpc import chat, details, failure


async def chunks(stack: Stack, path: str, body: dict[str, Any]) -> list[Any]:
    async with stack.http.post(path, json=body | {"stream": True}) as response:
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


async def test_prompt_token_ids_come_with_the_admission(stack: Stack) -> None:
    ids = [5, 6, 7]
    request = GenerateRequest(model="scripted", token_ids={"ids": ids}, stopping={"max_tokens": 2})
    request.output.prompt_token_ids = request.output.token_ids = True
    parts = [part async for part in stack.stub.Generate(request)]
    assert list(parts[0].prompt_token_ids) == ids
    assert parts[0].HasField("admitted")
    assert not any(part.prompt_token_ids for part in parts[1:])
    assert [i for part in parts for delta in part.deltas for i in delta.token_ids] == [0, 1]


@pytest.mark.parametrize("n", [1, 3])
async def test_streamed_token_ids_and_usage_are_those_of_each_choice(stack: Stack, n: int) -> None:
    body = {"model": "scripted", "prompt": [[5, 6], [7]], "max_tokens": 3, "n": n}
    body |= {"return_token_ids": True}
    async with stack.http.post("/v1/completions", json=body) as response:
        plain = (await response.json())["choices"]
    assert [choice["prompt_token_ids"] for choice in plain] == [[5, 6]] * n + [[7]] * n
    assert all(choice["token_ids"] == [0, 1, 2] for choice in plain)
    options = {"stream_options": {"continuous_usage_stats": True}}
    streamed = await chunks(stack, "/v1/completions", body | options)
    found: dict[int, list[int]] = {}
    prompts: dict[int, list[list[int]]] = {}
    for (choice,) in (chunk["choices"] for chunk in streamed):
        found.setdefault(choice["index"], []).extend(choice.get("token_ids", []))
        if "prompt_token_ids" in choice:
            prompts.setdefault(choice["index"], []).append(choice["prompt_token_ids"])
    assert found == {choice["index"]: choice["token_ids"] for choice in plain}
    assert prompts == {choice["index"]: [choice["prompt_token_ids"]] for choice in plain}
    assert streamed[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6 * n,
        "total_tokens": 3 + 6 * n,
    }


async def test_running_usage_alone_shows_no_token_ids(stack: Stack) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
    streamed = await chunks(
        stack, "/v1/chat/completions", body | {"stream_options": {"continuous_usage_stats": True}}
    )
    assert "token_ids" not in str(streamed)
    counts = [chunk["usage"]["completion_tokens"] for chunk in streamed]
    assert (counts[0], counts[-1], counts) == (0, 2, sorted(counts))
    assert {chunk["usage"]["prompt_tokens"] for chunk in streamed} == {2}


@pytest.mark.parametrize("tokens", [0, -2])
async def test_truncation_to_no_tokens_is_refused(stack: Stack, tokens: int) -> None:
    request = GenerateRequest(model="scripted", text="x", truncate_prompt_tokens=tokens)
    error = await failure(stack.stub, request)
    assert details(error) == ("integer_below_min_value", "truncate_prompt_tokens")
    for path, body in (
        ("/v1/completions", {"model": "scripted", "prompt": "x"}),
        ("/v1/embeddings", {"model": "scripted-embedding", "input": "x"}),
    ):
        body["truncate_prompt_tokens"] = tokens
        async with stack.http.post(path, json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "truncate_prompt_tokens"


async def test_chat_is_never_cut(stack: Stack) -> None:
    error = await failure(stack.stub, chat(truncate_prompt_tokens=5))
    assert details(error) == ("unsupported_parameter", "truncate_prompt_tokens")


async def test_only_a_request_for_it_cuts_an_input(stack: Stack) -> None:
    request = EmbedRequest(model="scripted-embedding", truncate_prompt_tokens=2)
    request.inputs.add(text="one two three")
    assert list((await stack.stub.Embed(request)).token_counts) == [2]
    request.ClearField("truncate_prompt_tokens")
    assert list((await stack.stub.Embed(request)).token_counts) == [3]


async def test_ping_load_and_version_answer_as_vllms(stack: Stack) -> None:
    for method in ("GET", "POST"):
        async with stack.http.request(method, "/ping") as response:
            assert response.status == 200
    async with stack.http.get("/load") as response:
        assert await response.json() == {"server_load": 0}
    async with stack.http.get("/version") as response:
        assert await response.json() == {"version": metadata.version("isthmus")}


async def test_load_counts_running_requests(stack: Stack) -> None:
    body = {"model": "scripted", "prompt": '{"fail": "hang"}', "stream": True}
    async with stack.http.post("/v1/completions", json=body) as running:
        assert running.status == 200
        async with stack.http.get("/load") as response:
            assert await response.json() == {"server_load": 1}
