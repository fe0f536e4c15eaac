"""Functions that scripted engines share: scripts in requests, and simulated failures."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from inference.engines.base import EngineDeadError
from inference.errors import invalid_value

_ScriptT = TypeVar("_ScriptT", bound=msgspec.Struct)


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
