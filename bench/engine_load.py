"""Loads for a server with a real model: streams, long prompts, short chats beside a long prompt.

Prompts are words at random that differ from request to request, so that no server finds them in its
cache. Every response has the requested number of tokens (`ignore_eos`), counted by its usage.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.client import PROMPT
from bench.http_client import Server, Totals
from bench.subject import Running

_WORDS: Final = (
    *("water", "stone", "light", "river", "paper", "house", "green", "early", "north", "small"),
    *("table", "voice", "world", "plant", "money", "story", "point", "night", "party", "field"),
    *("month", "power", "music", "letter", "market", "ground", "family", "window", "dinner"),
)
# Seconds between the begin of a long prompt and the first short chat, and between two chats.
_APART_SECONDS: Final = 0.5
_CHAT_TOKENS: Final = 8

Figures = dict[str, float]


class LoadError(Exception):
    """A request failed."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        tokens: Tokens of each response, by number of concurrent streams.
        prompts: Words of the prompts that are timed alone, and how often.
        beside: Words of the long prompt beside which short chats are sent.
        chats: The number of these chats, one after another.
    """

    tokens: dict[int, int]
    prompts: dict[int, int]
    beside: int
    chats: int


FULL: Final = Sizes({1: 64, 8: 64, 32: 48}, {600: 3, 2500: 1}, 4000, 8)
QUICK: Final = Sizes({1: 8, 8: 8, 32: 4}, {600: 1}, 600, 2)


class EngineLoad:
    """Puts the loads on one started server.

    Args:
        running: The server.
        seed: Of the words; another one for each run against the same server.

    Attributes:
        figures: What has been measured so far, also if a later load fails: tokens a second, and
            seconds to first tokens.
    """

    def __init__(self, running: Running, seed: int) -> None:
        self._server = Server(running.url, running.key, counts_usage=True)
        self._model = running.model
        self._random = random.Random(seed)
        self.figures: Figures = {}

    async def run(self, sizes: Sizes) -> None:
        """Measures all figures.

        Raises:
            LoadError: A request failed, or had another number of tokens.
        """
        await self._stream(PROMPT, 4)  # The first response is slower than any other.
        figures = self.figures
        for streams, tokens in sizes.tokens.items():
            began = time.perf_counter()
            await asyncio.gather(*(self._stream(self._text(30), tokens) for _ in range(streams)))
            figures[f"streams_{streams}"] = streams * tokens / (time.perf_counter() - began)
        for words, times in sizes.prompts.items():
            firsts = [_first(await self._stream(self._text(words), 1)) for _ in range(times)]
            figures[f"prompt_{words}"] = statistics.median(firsts)
        alone = await self._chats(sizes.chats)
        figures["chat_alone"] = statistics.median(alone)
        figures.update(await self._beside(sizes))

    async def _beside(self, sizes: Sizes) -> Figures:
        began = time.perf_counter()
        long = asyncio.create_task(self._stream(self._text(sizes.beside), 1))
        await asyncio.sleep(_APART_SECONDS)
        firsts = await self._chats(sizes.chats)
        first = _first(await long)
        return {
            "chat_beside": statistics.median(firsts),
            "chat_beside_worst": max(firsts),
            "long_beside": first,
            "both": time.perf_counter() - began,
        }

    async def _chats(self, count: int) -> list[float]:
        """Short chats, each begun half a second after the one before; their first tokens."""

        async def one(number: int) -> float:
            await asyncio.sleep(number * _APART_SECONDS)
            return _first(await self._stream(self._text(12), _CHAT_TOKENS))

        return await asyncio.gather(*map(one, range(count)))

    async def _stream(self, text: str, tokens: int) -> Totals:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "max_tokens": tokens,
            "temperature": 1.0,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        connection = await self._server.connect()
        totals = Totals()
        try:
            request = self._server.post("/v1/chat/completions", json.dumps(body).encode())
            fault = await connection.send(request, totals)
        finally:
            connection.close()
        if fault or totals.tokens != tokens:
            raise LoadError(fault or f"{totals.tokens} tokens for {tokens}")
        return totals

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))


def _first(totals: Totals) -> float:
    """Seconds to the first token; to the end if no token has text, as the end of a turn."""
    return totals.first[0] if totals.first else totals.whole[0]


def rows(sizes: Sizes) -> Iterator[tuple[str, str, Callable[[float], str]]]:
    """Yields the rows of the table: a figure, its title, and its format."""
    for streams in sizes.tokens:
        yield (
            f"streams_{streams}",
            f"{streams} stream{'s' if streams > 1 else ''}, tokens/s",
            "{:.0f}".format,
        )
    for words in sizes.prompts:
        yield f"prompt_{words}", f"prompt of {words:,} words, s to the first token", _seconds
    yield "chat_alone", f"short chats alone ({sizes.chats}), TTFT p50, s", _seconds
    yield "chat_beside", f"the same beside a prompt of {sizes.beside:,} words, p50", _seconds
    yield "chat_beside_worst", "the same, the slowest", _seconds
    yield "long_beside", "that long prompt, s to the first token", _seconds
    yield "both", "long prompt and chats, s in all", _seconds
    yield "start_s", "start to the first token, s", "{:.0f}".format


_seconds: Callable[[float], str] = "{:.2f}".format
