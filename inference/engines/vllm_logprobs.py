"""Tokens' exact bytes, and vLLM's log probabilities as the contract's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import xgrammar

from isthmus.v1.generate_pb2 import LogprobEntry, Logprobs, TokenLogprob

# JSON knows no -Infinity; OpenAI sends this for tokens that could not be drawn.
_LEAST_LOGPROB: Final = -9999.0


class Vocabulary:
    """The bytes of each token, also of those that are part of a character.

    Args:
        tokenizer: A Hugging Face tokenizer, or one that at least decodes.
        size: Rows of the model's output.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = size
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        try:
            info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
            self._bytes: Sequence[bytes] = info.decoded_vocab
        except (AttributeError, TypeError, ValueError, RuntimeError):
            # Not a tokenizer that xgrammar takes apart; parts of characters become U+FFFD.
            self._bytes = ()

    def data(self, token: int) -> bytes:
        """The token's bytes."""
        if token < len(self._bytes):
            return bytes(self._bytes[token])
        return str(self._tokenizer.decode([token])).encode()

    def entry(self, token: int, found: Any | None) -> LogprobEntry:
        """One token as the contract has it, with vLLM's value for it where there is one."""
        data = self.data(token)
        entry = LogprobEntry(id=token, text=data.decode("utf-8", "replace"), data=data)
        if found is not None:
            entry.logprob = found.logprob if math.isfinite(found.logprob) else _LEAST_LOGPROB
            if found.rank is not None:
                entry.rank = found.rank
        return entry


def token_logprob(
    vocabulary: Vocabulary, token: int, found: Mapping[int, Any] | None, alternatives: int
) -> TokenLogprob:
    """A token with its likeliest alternatives.

    Args:
        vocabulary: Of the model.
        token: The token taken.
        found: vLLM's values: the token taken and at least as many of the likeliest as asked for;
            None where there are none.
        alternatives: How many were asked for.
    """
    if found is None:
        return TokenLogprob(token=vocabulary.entry(token, None))
    likeliest = sorted(found.items(), key=lambda item: -item[1].logprob)[:alternatives]
    return TokenLogprob(
        token=vocabulary.entry(token, found[token]),
        top=[vocabulary.entry(other, value) for other, value in likeliest],
    )


def prompt_logprobs(
    vocabulary: Vocabulary,
    tokens: Sequence[int],
    found: Sequence[Mapping[int, Any] | None],
    alternatives: int,
) -> Logprobs:
    """The prompt's tokens; the first has no probability."""
    return Logprobs(
        tokens=[
            token_logprob(vocabulary, token, values, alternatives)
            for token, values in zip(tokens, found, strict=False)
        ]
    )


class LogprobStream:
    """Log probabilities of one choice, held back as long as the text that they belong to.

    vLLM withholds text that may become a stop string but not its tokens, and never takes back
    those of a stop string that it cut off. What leaves here joins to exactly the text.
    """

    def __init__(
        self, vocabulary: Vocabulary, alternatives: int, *, cut: bool, blank_special: bool
    ) -> None:
        self._vocabulary = vocabulary
        self._alternatives = alternatives
        self._cut = cut
        self._blank_special = blank_special
        self._held: deque[TokenLogprob] = deque()
        self._text_bytes = 0
        self._token_bytes = 0

    def add(self, text: str, tokens: Iterable[int], found: Iterable[Mapping[int, Any]]) -> None:
        """Takes a step's text, its tokens and vLLM's values for them."""
        self._text_bytes += len(text.encode())
        for token, values in zip(tokens, found, strict=False):
            item = token_logprob(self._vocabulary, token, values, self._alternatives)
            if self._blank_special and token in self._vocabulary.special_ids:
                # Left out of the text, so it must not add to it here.
                item.token.text, item.token.data = "", b""
            self._held.append(item)

    def drop_last(self) -> None:
        """Forgets the newest token: one that ended the text without being part of it."""
        if self._held:
            self._held.pop()

    def take(self, *, ended_by_string: bool = False, ended: bool = False) -> Logprobs | None:
        """What may leave now; all that is left once the choice has ended."""
        ready = []
        while self._held:
            size = len(self._held[0].token.data)
            if self._cut and ended_by_string and self._token_bytes >= self._text_bytes:
                break
            if self._cut and not ended and self._token_bytes + size > self._text_bytes:
                break
            self._token_bytes += size
            ready.append(self._held.popleft())
        if ended_by_string and self._cut and ready and self._token_bytes > self._text_bytes:
            # The stop string began inside this token.
            last = ready[-1].token
            last.data = last.data[: len(last.data) - (self._token_bytes - self._text_bytes)]
            last.text = last.data.decode("utf-8", "replace")
        return Logprobs(tokens=ready) if ready else None
