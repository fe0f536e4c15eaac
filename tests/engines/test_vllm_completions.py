"""Echo, scoring, ranking and token prompts on a real model."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import ClientSession

from inference.engines.base import TextEngine
from inference.errors import InferenceError
from isthmus.v1 import generate_pb2
from isthmus.v1.generate_pb2 import GenerateRequest, TokenLogprob
from tests.engines.generating import joined, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_echo_begins_with_the_prompt(engine: TextEngine) -> None:
    prompt = "The capital of France is"
    result = await run(engine, text(prompt, output={"echo": True, "n": 2}), 4)
    bare = await run(engine, text(prompt), 4)
    assert result.texts[0] == result.texts[1] == prompt + bare.texts[0]


async def test_echo_without_tokens_scores_the_prompt(engine: TextEngine) -> None:
    prompt = "The capital of France is Paris"
    options = {"echo": True, "prompt_logprobs": 2}
    result = await run(engine, text(prompt, output=options), 0)
    assert result.texts[0] == prompt
    assert joined(result.prompt) == prompt.encode()
    assert not result.prompt[0].token.HasField("logprob")
    assert all(item.token.HasField("logprob") for item in result.prompt[1:])
    assert all(len(item.top) == 2 for item in result.prompt[1:])
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH
    assert result.usage is not None
    assert result.usage.completion_tokens == 0


async def test_echo_with_zero_max_tokens_returns_the_prompt(engine: TextEngine) -> None:
    result = await run(engine, text("Only this", output={"echo": True}), 0)
    assert result.texts[0] == "Only this"
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


async def test_best_of_returns_the_most_likely_candidate(engine: TextEngine) -> None:
    def request(**output: int) -> GenerateRequest:
        sampling = {"temperature": 1.5, "seed": 3}
        return text("My favourite animal is", output=output, sampling=sampling)

    def mean(tokens: list[TokenLogprob]) -> float:
        return sum(item.token.logprob for item in tokens) / len(tokens)

    every = await run(engine, request(n=4, logprobs=0), 8)
    best = await run(engine, request(n=1, best_of=4), 8)
    likeliest = max(every.logprobs, key=lambda index: mean(every.logprobs[index]))
    assert set(best.texts) == set(best.finishes) == {0}
    assert best.texts[0] == every.texts[likeliest]
    assert not best.logprobs[0], "logprobs were not requested"
    assert best.usage is not None
    assert best.usage.completion_tokens == 32


async def test_token_ids_generate_the_same_output_as_their_text(engine: TextEngine) -> None:
    scored = await run(engine, text("Tom has two cats", output={"prompt_logprobs": 0}), 8)
    ids = [item.token.id for item in scored.prompt]
    result = await run(
        engine, GenerateRequest(token_ids={"ids": ids}, sampling={"temperature": 0}), 8
    )
    assert result.texts == scored.texts
    echoed = GenerateRequest(token_ids={"ids": ids}, output={"echo": True})
    assert (await run(engine, echoed, 0)).texts[0] == "Tom has two cats"


@pytest.mark.parametrize("prompt", ["", None, [""]])
async def test_empty_prompt_starts_from_the_beginning_of_text(
    http: ClientSession, prompt: Any
) -> None:
    body = {"model": "smollm2", "max_tokens": 8, "temperature": 0}
    async with http.post("/v1/completions", json=body | {"prompt": prompt}) as response:
        assert response.status == 200
        empty = await response.json()
    # The token that this model's tokenizer names as the beginning of a text.
    async with http.post("/v1/completions", json=body | {"prompt": [1]}) as response:
        begun = await response.json()
    assert empty["choices"] == begun["choices"]
    assert empty["choices"][0]["text"]
    assert empty["usage"] == begun["usage"]


async def test_echo_of_an_empty_prompt_is_empty(engine: TextEngine) -> None:
    result = await run(engine, text("", output={"echo": True}), 4)
    bare = await run(engine, text(""), 4)
    assert result.texts == bare.texts


async def test_empty_prompt_without_beginning_starts_from_the_end_of_text(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = type(engine._engine.get_tokenizer())  # type: ignore[attr-defined]
    monkeypatch.setattr(tokenizer, "bos_token_id", None, raising=False)
    result = await run(engine, text(""), 4)
    ended = GenerateRequest(token_ids={"ids": [2]}, sampling={"temperature": 0})
    assert result.texts == (await run(engine, ended, 4)).texts
    monkeypatch.setattr(tokenizer, "eos_token_id", None, raising=False)
    with pytest.raises(InferenceError, match="no token to begin a text with") as refusal:
        await run(engine, text(""), 4)
    assert refusal.value.param == "prompt"


async def test_scoring_a_prompt_that_fills_the_context_is_refused(engine: TextEngine) -> None:
    options = {"echo": True, "prompt_logprobs": 0}
    request = GenerateRequest(token_ids={"ids": [5] * 2048}, output=options)
    with pytest.raises(InferenceError) as refusal:
        await run(engine, request, 0)
    assert "maximum context length is 2048 tokens" in refusal.value.message
    assert engine.health().running == 0


async def test_evaluation_harness_request_scores_its_token_ids(http: ClientSession) -> None:
    body = {
        "model": "smollm2",
        "prompt": [[504, 3575, 282, 4649, 314], [260, 2240]],
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "temperature": 0,
        "seed": 1234,
    }
    async with http.post("/v1/completions", json=body) as response:
        answer = await response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, tokens in zip(answer["choices"], body["prompt"], strict=True):
        scores = choice["logprobs"]
        assert {len(column) for column in scores.values()} == {len(tokens) + 1}
        assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
        assert all(value <= 0 for value in scores["token_logprobs"][1:])
        assert "".join(scores["tokens"]) == choice["text"]
        assert choice["finish_reason"] == "length"
    assert answer["choices"][0]["text"] == "The capital of France is Paris"
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 2


async def test_prompt_and_output_may_fill_but_not_exceed_the_context(http: ClientSession) -> None:
    body = {"model": "smollm2", "prompt": [5] * 2046, "max_tokens": 2, "ignore_eos": True}
    async with http.post("/v1/completions", json=body) as response:
        assert response.status == 200
        assert (await response.json())["usage"]["total_tokens"] == 2048
    async with http.post("/v1/completions", json=body | {"max_tokens": 3}) as response:
        assert response.status == 400
