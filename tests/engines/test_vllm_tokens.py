"""Counts of tokens by a real model: those of the usage, whatever the prompt is made of."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
from aiohttp import ClientSession

from inference.engines.base import TextEngine
from inference.errors import InferenceError
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from tests.engines.generating import chat, prepare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.renderers.online_renderer import OnlineRenderer

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

ASK = {"role": "user", "content": "What is the weather in Paris?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": PARAMETERS}}
    for name in ("get_weather", "get_time")
]
CALL = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
CALLED = [
    ASK,
    {"role": "assistant", "reasoning_content": "I look it up.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "rain"},
]
OPEN = [ASK, {"role": "assistant", "content": "It is"}]
CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [ASK]},
    "text": {"messages": "Hello"},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, ASK]},
    "tools": {"messages": [ASK], "tools": TOOLS},
    "no tools called": {"messages": [ASK], "tools": TOOLS, "tool_choice": "none"},
    "required": {"messages": [ASK], "tools": TOOLS, "tool_choice": "required"},
    "one function": {
        "messages": [ASK],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "get_time"}},
    },
    "history of calls": {"messages": CALLED, "tools": TOOLS},
    "effort": {"messages": [ASK], "reasoning_effort": "low"},
    "continued": {"messages": OPEN, "continue_final_message": True},
    "not opened": {"messages": OPEN, "add_generation_prompt": False},
    "arguments": {"messages": [ASK], "chat_template_kwargs": {"enable_thinking": False}},
    "special tokens": {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>x"}]},
}
TEXTS = [
    "The capital of France is",
    " leading and trailing ",
    "\n\n\ttabs",
    "Zażółć gęślą jaźń",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 日本語 \u0301",
    "<|im_start|>user\nhi<|im_end|>",
    "def f(x):\n    return x\n",
    "a" * 500,
]


async def post(http: ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with http.post(path, json={"model": "smollm2"} | body) as response:
        document: dict[str, Any] = await response.json()
        assert response.status == 200, document
        return document


@pytest.mark.parametrize("parameters", CHATS.values(), ids=CHATS)
async def test_count_of_a_chat_is_that_of_its_usage(
    http: ClientSession, parameters: dict[str, Any]
) -> None:
    counted = await post(http, "/tokenize", **parameters)
    answer = await post(
        http, "/v1/chat/completions", **parameters, max_tokens=1, return_token_ids=True
    )
    assert counted["count"] == answer["usage"]["prompt_tokens"] == len(counted["tokens"])
    assert counted["tokens"] == answer["prompt_token_ids"]
    assert counted["max_model_len"] == 2048


async def test_what_the_template_gets_changes_the_count(http: ClientSession) -> None:
    counts = {
        name: (await post(http, "/tokenize", **parameters))["count"]
        for name, parameters in CHATS.items()
    }
    assert counts["plain"] == counts["no tools called"] < counts["tools"]
    assert counts["tools"] != counts["one function"]
    assert counts["continued"] < counts["not opened"]


@pytest.mark.parametrize("text", [*TEXTS, ""])
async def test_count_of_a_text_is_that_of_its_usage(http: ClientSession, text: str) -> None:
    counted = await post(http, "/tokenize", prompt=text)
    answer = await post(http, "/v1/completions", prompt=text, max_tokens=1, return_token_ids=True)
    assert counted["count"] == answer["usage"]["prompt_tokens"]
    assert counted["tokens"] == answer["choices"][0]["prompt_token_ids"]


async def test_tokens_of_random_texts_have_the_same_text(http: ClientSession) -> None:
    dice = random.Random("texts")
    texts = [
        "".join(chr(dice.choice([*range(32, 127), 0x20AC, 0x4E2D, 0x1F600])) for _ in range(50))
        for _ in range(20)
    ]
    for text in [*TEXTS, *texts, ""]:
        counted = await post(http, "/tokenize", prompt=text, add_special_tokens=False)
        document = await post(http, "/detokenize", tokens=counted["tokens"])
        assert document == {"prompt": text}


async def test_tokens_have_the_names_of_the_vocabulary(http: ClientSession) -> None:
    counted = await post(http, "/tokenize", prompt="Hello world", return_token_strs=True)
    assert counted["token_strs"] == ["Hello", "Ġworld"]
    counted = await post(http, "/tokenize", messages=[ASK], return_token_strs=True)
    assert len(counted["token_strs"]) == counted["count"]
    assert "<|im_start|>" in counted["token_strs"]


async def test_prompt_longer_than_the_context_is_counted_not_refused(http: ClientSession) -> None:
    text = "hello " * 5000
    assert (await post(http, "/tokenize", prompt=text))["count"] >= 5000
    messages = [{"role": "user", "content": text}]
    assert (await post(http, "/tokenize", messages=messages))["count"] >= 5000


async def test_text_that_no_tokenization_fits_is_refused_at_once(engine: TextEngine) -> None:
    with pytest.raises(InferenceError, match="maximum context length is 2048 tokens"):
        await engine.tokenize(TokenizeRequest(text="x" * 5_000_000))


async def test_tokens_outside_the_vocabulary_are_refused(http: ClientSession) -> None:
    body = {"model": "smollm2", "tokens": [1, 49_152]}
    async with http.post("/detokenize", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "tokens[1]"


async def test_chat_that_the_template_refuses_is_refused(http: ClientSession) -> None:
    body = {"model": "smollm2", "messages": [ASK], "chat_template_kwargs": {"tools": []}}
    async with http.post("/tokenize", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "chat_template_kwargs.tools"


async def test_counting_runs_no_model(engine: TextEngine, http: ClientSession) -> None:
    before = engine.health().generated_tokens
    await post(http, "/tokenize", messages=[ASK])
    assert engine.health().generated_tokens == before
    assert engine.health().running == 0


async def test_counted_image_stays_out_of_the_cache_that_the_engine_core_has(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test model sees no images, so this looks at what vLLM's renderer is told.
    skips: list[bool] = []
    render = OnlineRenderer.render_chat

    async def spy(renderer: Any, request: Any, *, skip_mm_cache: bool = False) -> Any:
        skips.append(skip_mm_cache)
        return await render(renderer, request, skip_mm_cache=skip_mm_cache)

    monkeypatch.setattr(OnlineRenderer, "render_chat", spy)
    request = chat("Hello")
    counted = await engine.tokenize(TokenizeRequest(chat=request.chat))
    prepared = await prepare(engine, request, 1)
    assert skips == [True, False]
    assert len(counted.ids) == prepared.prompt_tokens
