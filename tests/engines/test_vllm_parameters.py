"""Parameters of vLLM's API, over HTTP, on a real model."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from aiohttp import ClientSession

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

SAY_HI = [{"role": "user", "content": "Say hi"}]
CHAT = ("/v1/chat/completions", {"messages": SAY_HI, "max_tokens": 4})
COMPLETION = ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 4})


async def ask(http: ClientSession, path: str, **body: Any) -> Any:
    async with http.post(path, json={"model": "smollm2", "temperature": 0, **body}) as response:
        answer = await response.json()
        return answer if response.status == 200 else answer["error"]


async def chunks(http: ClientSession, path: str, **body: Any) -> list[Any]:
    body = {"model": "smollm2", "temperature": 0, "stream": True, **body}
    async with http.post(path, json=body) as response:
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_token_ids_are_those_of_prompt_and_output(
    http: ClientSession, path: str, body: dict[str, Any]
) -> None:
    plain = await ask(http, path, **body, return_token_ids=True)
    (choice,) = plain["choices"]
    prompt = (plain if "chat" in path else choice)["prompt_token_ids"]
    assert len(prompt) == plain["usage"]["prompt_tokens"]
    assert len(choice["token_ids"]) == plain["usage"]["completion_tokens"] == 4
    streamed = await chunks(http, path, **body, return_token_ids=True)
    first = streamed[0] if "chat" in path else streamed[0]["choices"][0]
    assert first["prompt_token_ids"] == prompt
    assert str(streamed).count("prompt_token_ids") == 1
    ids = [chunk["choices"][0].get("token_ids", []) for chunk in streamed]
    assert list(chain(*ids)) == choice["token_ids"]
    scored = await ask(http, "/v1/completions", prompt=prompt, max_tokens=4, return_token_ids=True)
    assert scored["choices"][0]["token_ids"] == choice["token_ids"]


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_every_chunk_has_the_usage_so_far(
    http: ClientSession, path: str, body: dict[str, Any]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *running, last = await chunks(http, path, **body, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in running]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == 4
    for chunk in running:
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == last["usage"]["prompt_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_bad_words_are_not_generated(http: ClientSession) -> None:
    path, body = COMPLETION
    assert (await ask(http, path, **body))["choices"][0]["text"].startswith(" Paris")
    answer = await ask(http, path, **body, bad_words=["Paris"])
    assert "Paris" not in answer["choices"][0]["text"]
    most = [f"word {i}" for i in range(64)]
    assert "choices" in await ask(http, path, **body, bad_words=most)


@pytest.mark.parametrize("long", [1, 900])
async def test_prompt_is_cut_at_the_chosen_end(http: ClientSession, long: int) -> None:
    words = "one two three four five six " * long

    async def kept(**options: Any) -> str:
        body = {"prompt": words.strip(), "max_tokens": 1, "echo": True, **options}
        answer = await ask(http, "/v1/completions", **body)
        assert answer["usage"]["prompt_tokens"] == 2
        return str(answer["choices"][0]["text"])

    assert (await kept(truncate_prompt_tokens=2)).startswith(" five six")
    right = await kept(truncate_prompt_tokens=2, truncation_side="right", logprobs=0)
    assert right.startswith("one two")


async def test_prompt_is_cut_to_what_max_tokens_leave(http: ClientSession) -> None:
    body = {"prompt": [5] * 5000, "max_tokens": 3, "ignore_eos": True}
    error = await ask(http, "/v1/completions", **body)
    assert "maximum context length" in error["message"]
    answer = await ask(http, "/v1/completions", **body, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 2045
    error = await ask(http, "/v1/completions", **body, truncate_prompt_tokens=0)
    assert error["param"] == "truncate_prompt_tokens"


async def test_echo_of_a_chat_begins_with_the_continued_message(http: ClientSession) -> None:
    messages = [*SAY_HI, {"role": "assistant", "content": "Hello, my name"}]
    body = {"messages": messages, "continue_final_message": True, "max_tokens": 3}
    bare = await ask(http, "/v1/chat/completions", **body)
    text = "Hello, my name" + bare["choices"][0]["message"]["content"]
    answer = await ask(http, "/v1/chat/completions", **body, echo=True)
    assert answer["choices"][0]["message"]["content"] == text
    streamed = await chunks(http, "/v1/chat/completions", **body, echo=True)
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in streamed) == text


async def test_echo_repeats_nothing_that_the_user_wrote(http: ClientSession) -> None:
    path, body = CHAT
    bare, echoed = await ask(http, path, **body), await ask(http, path, **body, echo=True)
    assert echoed["choices"][0]["message"] == bare["choices"][0]["message"]


async def test_pattern_that_compiles_too_slowly_is_refused(http: ClientSession) -> None:
    path, body = COMPLETION
    slow = {"regex": '[^"]{1,1000}'}
    for _ in range(2):
        error = await ask(http, path, **body, structured_outputs=slow)
        assert (error["param"], error["code"]) == ("structured_outputs.regex", "invalid_value")
        answer = await ask(http, path, **body, structured_outputs={"regex": "[ab]{3}"})
        assert len(answer["choices"][0]["text"]) == 3
