"""Sampling and stopping on a real model."""

from __future__ import annotations

import pytest

from inference.engines.base import TextEngine
from isthmus.v1 import generate_pb2
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.engines.generating import chat, joined, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_output_at_max_tokens_finishes_with_length(engine: TextEngine) -> None:
    result = await run(engine, text("Once upon a time"), max_tokens=5)
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH
    assert result.usage is not None
    assert result.usage.completion_tokens == 5


async def test_no_part_of_a_stop_string_is_sent(engine: TextEngine) -> None:
    whole = (await run(engine, text("Count: one two three"), max_tokens=40)).texts[0]
    # The stop string begins inside a token and spans several.
    stop = whole[9:17]
    before = whole[: whole.index(stop)]
    options = {"logprobs": 0}
    result = await run(
        engine,
        text("Count: one two three", stopping={"strings": ["zzz", stop]}, output=options),
        max_tokens=40,
    )
    assert result.texts[0] == before
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP
    assert result.finishes[0].stop_string == stop
    assert joined(result.logprobs[0]) == before.encode()


async def test_stop_string_is_sent_if_included(engine: TextEngine) -> None:
    whole = (await run(engine, text("Count: one two three"), max_tokens=40)).texts[0]
    stop = whole[9:17]
    stopping = {"strings": [stop], "include_stop_string": True}
    result = await run(
        engine, text("Count: one two three", stopping=stopping, output={"logprobs": 0}), 40
    )
    assert result.texts[0] == whole[: whole.index(stop)] + stop
    assert joined(result.logprobs[0]) == result.texts[0].encode()


async def test_finish_names_the_stop_token(engine: TextEngine) -> None:
    whole = await run(engine, text("Count: one two", output={"token_ids": True}), 20)
    stop = whole.token_ids[0][4]
    result = await run(engine, text("Count: one two", stopping={"token_ids": [stop]}), 20)
    assert result.finishes[0].stop_token_id == stop
    assert whole.texts[0].startswith(result.texts[0])
    assert len(result.texts[0]) < len(whole.texts[0])


async def test_choices_differ_and_the_same_seed_repeats_them(engine: TextEngine) -> None:
    def request(seed: int) -> GenerateRequest:
        return chat(
            "Invent a name for a ship.",
            output={"n": 2},
            sampling={"temperature": 1.2, "seed": seed},
        )

    first = await run(engine, request(7), 24)
    again = await run(engine, request(7), 24)
    other = await run(engine, request(8), 24)
    assert first.texts.keys() == first.finishes.keys() == {0, 1}
    assert first.texts[0] != first.texts[1]
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert first.usage is not None
    assert first.usage.completion_tokens > 24


async def test_greedy_choices_are_the_same(engine: TextEngine) -> None:
    for sampling in ({"temperature": 0.0}, {"top_p": 0.0}):
        request = chat("What is the capital of France?", output={"n": 3}, sampling=sampling)
        result = await run(engine, request)
        assert set(result.texts) == set(result.finishes) == {0, 1, 2}
        assert len(set(result.texts.values())) == 1
        assert "Paris" in result.texts[0]


async def test_logit_bias_forces_a_token(engine: TextEngine) -> None:
    wanted = (await run(engine, text(" blue", output={"prompt_logprobs": 0}), 1)).prompt[0].token
    sampling = {"temperature": 0, "logit_bias": {wanted.id: 100.0}}
    result = await run(engine, text("The sky is", sampling=sampling), 3)
    assert result.texts[0].encode() == wanted.data * 3


async def test_min_tokens_with_ignore_eos_continues_past_the_end_token(engine: TextEngine) -> None:
    ending = {"min_tokens": 30, "ignore_eos": True}
    result = await run(engine, chat("Say hi.", stopping=ending), 30)
    assert result.usage is not None
    assert result.usage.completion_tokens == 30


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}], ids=str)
async def test_narrowest_sampling_equals_greedy_sampling(
    engine: TextEngine, narrow: dict[str, float]
) -> None:
    likeliest = await run(engine, text("Once upon a time"), 8)
    sampling = {"temperature": 1.5, **narrow}
    result = await run(engine, text("Once upon a time", sampling=sampling), 8)
    assert result.texts == likeliest.texts


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.8}],
    ids=str,
)
async def test_penalties_increase_the_number_of_distinct_tokens(
    engine: TextEngine, penalty: dict[str, float]
) -> None:
    def request(**sampling: float) -> GenerateRequest:
        return text(
            "na na na na na na na na",
            sampling={"temperature": 0, **sampling},
            stopping={"ignore_eos": True},
            output={"token_ids": True},
        )

    plain = await run(engine, request(), 16)
    varied = await run(engine, request(**penalty), 16)
    assert len(set(varied.token_ids[0])) > len(set(plain.token_ids[0]))


async def test_logit_bias_bans_a_token(engine: TextEngine) -> None:
    likeliest = await run(engine, text("The sky is", output={"token_ids": True}), 1)
    (banned,) = likeliest.token_ids[0]
    sampling = {"temperature": 0, "logit_bias": {banned: -100.0}}
    result = await run(engine, text("The sky is", sampling=sampling, output={"token_ids": True}), 8)
    assert banned not in result.token_ids[0]


@pytest.mark.parametrize("skip", [True, False])
async def test_special_tokens_are_omitted_unless_requested(engine: TextEngine, skip: bool) -> None:
    request = text(
        "Hi",
        sampling={"temperature": 0, "logit_bias": {2: 100.0}},
        stopping={"ignore_eos": True},
        output={"skip_special_tokens": skip, "logprobs": 0},
    )
    result = await run(engine, request, 2)
    assert result.texts.get(0, "") == ("" if skip else "<|im_end|>" * 2)
    assert joined(result.logprobs[0]).decode() == result.texts.get(0, "")


async def test_max_tokens_of_one_generates_one_token(engine: TextEngine) -> None:
    result = await run(engine, chat("Count to ten."), 1)
    assert result.usage is not None
    assert result.usage.completion_tokens == 1
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


async def test_seed_works_for_a_prompt_prefilled_in_several_steps(engine: TextEngine) -> None:
    """vLLM's unpatched CPU worker crashes on such a prompt."""
    sampling = {"temperature": 1.5, "seed": 5}
    long = "The quick brown fox jumps over the lazy dog. " * 40
    whole = await run(engine, text(long, sampling=sampling, cache_salt="1"), 8)
    # The second run prefills only the uncached end of the prompt, in one step.
    cached = await run(engine, text(long, sampling=sampling, cache_salt="1"), 8)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 256
    assert cached.usage is not None
    assert cached.usage.cached_tokens > 256
    assert whole.texts == cached.texts
