"""Log probabilities of a real model."""

from __future__ import annotations

import pytest

from inference.engines.base import TextEngine
from tests.engines.generating import chat, joined, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_logprobs_join_to_the_text(engine: TextEngine) -> None:
    request = chat("Write three emoji: 🌍🚀", output={"logprobs": 3, "token_ids": True})
    result = await run(engine, request, 40)
    tokens = result.logprobs[0]
    assert tokens
    # max_tokens may end inside a character, which the text then omits.
    assert joined(tokens).decode(errors="ignore") == result.texts[0]
    for item in tokens:
        values = [entry.logprob for entry in item.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert item.token.logprob == pytest.approx(values[0])
        assert item.token.id == item.top[0].id
    assert [item.token.id for item in tokens] == result.token_ids[0][: len(tokens)]


async def test_characters_of_several_tokens_stay_whole(engine: TextEngine) -> None:
    wanted = "🦩 größer, 東京 🇫🇷!"
    request = text("Copy:", constraint={"choices": {"values": [wanted]}}, output={"logprobs": 0})
    result = await run(engine, request)
    assert result.texts[0] == wanted
    assert all("\ufffd" not in piece for piece in result.pieces)
    assert joined(result.logprobs[0]) == wanted.encode()
    assert any("\ufffd" in item.token.text for item in result.logprobs[0])


async def test_banned_tokens_have_a_finite_logprob(engine: TextEngine) -> None:
    request = text(
        "Yes or no?", constraint={"choices": {"values": ["yes"]}}, output={"logprobs": 5}
    )
    result = await run(engine, request)
    values = [entry.logprob for item in result.logprobs[0] for entry in (item.token, *item.top)]
    assert values
    assert all(-9999.0 <= value <= 0.0 for value in values)


async def test_logprobs_have_ranks(engine: TextEngine) -> None:
    options = {"prompt_logprobs": 1, "logprobs": 1}
    result = await run(engine, text("The capital of France is", output=options), 2)
    for item in (*result.prompt[1:], *result.logprobs[0]):
        assert item.top[0].rank == 1
        assert (item.token.rank == 1) == (item.token.id == item.top[0].id)
    assert not result.prompt[0].token.HasField("rank")
