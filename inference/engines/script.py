"""What scripted engines share: scripts in requests, words as tokens, and simulated failures."""

from __future__ import annotations

import os
import re
import signal
import zlib
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

from inference.engines.base import EngineDeadError
from inference.errors import invalid_value
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest

VOCABULARY_SIZE: Final = 50_000
_ScriptT = TypeVar("_ScriptT", bound=msgspec.Struct)


class TextScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The script of a text engine.

    Attributes:
        tokens: Tokens of each choice, cut at max_tokens.
        tokens_per_step: Tokens that each request gets in one engine step.
        text: The output instead of "w0 w1 ..."; each word is a token.
        step_seconds: Time between engine steps; 0 takes one step per turn of the event loop.
        prefill_seconds: Time before the first token.
        load_seconds: Duration of `start`.
        tokenize_seconds: Time that counting a prompt takes.
        fail: "start" raises before the first token, "late" after the finish, "refuse" an
            InferenceError. After two tokens "mid" raises, "hang" stops without an end, "die"
            raises EngineDeadError, "exit" kills the process.
        context_length: The model's context, in tokens.
        prefix_cache: Whether the usage has the prompt tokens that earlier prompts began with.
        vision: Whether messages may have images, which count as no token.
    """

    tokens: int = 16
    tokens_per_step: int = 1
    text: str | None = None
    step_seconds: float = 0.0
    prefill_seconds: float = 0.0
    load_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    fail: Literal["start", "mid", "late", "refuse", "hang", "die", "exit"] | None = None
    context_length: int = 4096
    prefix_cache: bool = False
    vision: bool = False


class ScriptedFaultError(Exception):
    """Simulates a bug; its text must not reach a caller."""


class HangError(Exception):
    """Simulates an engine that stops producing output without failing."""


BLOCK_TOKENS: Final = 16


class PrefixCache:
    """Remembers the beginnings of prompts in whole blocks, as vLLM does, but evicts nothing."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def hit(self, tokens: Sequence[object]) -> int:
        """The tokens at the beginning that are in the cache; afterwards all whole blocks are.

        The last token never counts: an engine has to compute it for the first output.
        """
        hit = chain = 0
        for start in range(0, len(tokens) - BLOCK_TOKENS, BLOCK_TOKENS):
            chain = hash((chain, *tokens[start : start + BLOCK_TOKENS]))
            if chain in self._seen:
                hit = start + BLOCK_TOKENS
            self._seen.add(chain)
        return hit


def texts_of(request: GenerateRequest | TokenizeRequest) -> list[str]:
    """The texts of a request: of each message, or one."""
    messages = request.chat.messages[:]
    return ["".join(part.text for part in m.parts[:]) for m in messages] or [request.text]


def token_of(word: str) -> int:
    """The token of a word: 7 for "w7" as in the output, and a hash for any other word."""
    number = word[1:]
    if word == f"w{number}" and number.isascii() and number.isdigit() and len(number) < 6:
        return int(number) % VOCABULARY_SIZE
    return zlib.crc32(word.encode()) % VOCABULARY_SIZE


def overridden(script: _ScriptT, text: str, param: str) -> _ScriptT:
    """The script, changed by the text if that is a JSON object; raises InferenceError."""
    if not text.lstrip().startswith("{"):
        return script
    try:
        overrides = msgspec.json.decode(text.encode())
        return msgspec.convert(msgspec.to_builtins(script) | overrides, type(script))
    except msgspec.DecodeError as error:
        raise invalid_value("The script is not valid.", param) from error


def raise_fault(fail: str | None, position: int) -> None:
    """Raises the script's failure, if it comes before this step or token (from 0)."""
    if fail == "start" and position == 0:
        raise ScriptedFaultError("canary-start")
    if position != 2:
        return
    if fail == "mid":
        raise ScriptedFaultError("canary-mid")
    if fail == "hang":
        raise HangError
    if fail == "die":
        raise EngineDeadError("canary-die")
    if fail == "exit":
        os.kill(os.getpid(), signal.SIGKILL)


def words_of(text: str | None, tokens: int, stops: Sequence[str]) -> list[str]:
    """The output word by word: the text, or "w0 w1 ...", up to the first of the stop strings."""
    if text is None:
        words = [f"w{position} " for position in range(tokens)]
    else:
        words = re.findall(r"\s*\S+|\s+$", text)
    whole = "".join(words)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    if not ends:
        return words
    kept, remaining = [], min(ends)
    for word in words:
        if remaining <= 0:
            break
        kept.append(word[:remaining])
        remaining -= len(word)
    return kept
