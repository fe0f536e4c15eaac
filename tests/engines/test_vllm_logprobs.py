"""Log probabilities of a real model."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from typing import Any

import pytest
from aiohttp import ClientSession

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


_CHAT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello! How can I help you today?"
_TEXTS = [_CHAT, "<|endoftext|>🌍 größer <file_sep>東京", " two  spaces\r\n\tand <|im_ not special"]
_IDS = [
    [1, 9690, 198, 2683, 359, 2, 198, 1],
    [2, 2, 0, 17, 1, 5, 3],
    # Bytes that are not UTF-8, and half of a character.
    [0, 172, 210, 155, 47, 0, 5],
    [*random.Random(1).choices(range(49152), k=40), 0],
]
_COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
# The likeliest tokens, and only special ones.
_OUTPUTS: list[dict[str, Any]] = [{}, {"logit_bias": {"2": 100, "0": 99.9}, "ignore_eos": True}]


@pytest.mark.parametrize("skip", [True, False, None])
@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("prompts", [_TEXTS, _IDS], ids=["text", "ids"])
async def test_text_tokens_and_offsets_agree(
    http: ClientSession, prompts: list[Any], echo: bool, skip: bool | None
) -> None:
    async def check(prompt: Any, output: dict[str, Any], max_tokens: int) -> None:
        body = {"model": "smollm2", "prompt": prompt, "echo": echo, "logprobs": 3, "temperature": 0}
        body |= {"skip_special_tokens": skip, "max_tokens": max_tokens, "n": 2, **output}
        plain, streamed = await asyncio.gather(_plain(http, body), _streamed(http, body))
        for written, logprobs in (*plain, *streamed):
            # Without echo, the offsets of a text prompt count its characters.
            before = "" if echo or not isinstance(prompt, str) else prompt
            _check_agreement(before, written, logprobs, top=3)
            if echo and isinstance(prompt, str):
                assert written.startswith(prompt)
            if echo:
                assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None

    cases = itertools.product(prompts, _OUTPUTS, [0, 6] if echo else [6])
    await asyncio.gather(*(check(*case) for case in cases))


def _check_agreement(before: str, written: str, logprobs: dict[str, Any], top: int) -> None:
    tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
    assert len({len(column) for column in logprobs.values()}) == 1
    whole = before + written
    data = before.encode() + b"".join(map(_bytes, tokens))
    # The text omits a character that the last tokens begin.
    assert data.decode("utf-8", "replace").removesuffix("\ufffd") == whole.removesuffix("\ufffd")
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert whole[offset:].startswith(token)
    ends = [*offsets[1:], len(whole)][: len(offsets)]
    for token, offset, end in zip(tokens, offsets, ends, strict=True):
        if not token.startswith("bytes:"):
            assert end - offset == len(token)
    for token, value, others in zip(
        tokens, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        if others is not None:
            assert others[token] == value
            assert len(others) <= top + (value <= min(others.values()))


def _bytes(token: str) -> bytes:
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes.fromhex("".join(re.findall(r"\\x(..)", token)))


async def _plain(http: ClientSession, body: dict[str, Any]) -> list[Any]:
    async with http.post("/v1/completions", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    return [(choice["text"], choice["logprobs"]) for choice in answer["choices"]]


async def _streamed(http: ClientSession, body: dict[str, Any]) -> list[Any]:
    texts = ["", ""]
    lists: list[dict[str, list[Any]]] = [{name: [] for name in _COLUMNS} for _ in texts]
    async with http.post("/v1/completions", json=body | {"stream": True}) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                texts[choice["index"]] += choice["text"]
                for name, column in (choice["logprobs"] or {}).items():
                    lists[choice["index"]][name].extend(column)
    return list(zip(texts, lists, strict=True))
