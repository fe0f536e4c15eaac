"""The exact bytes of tokens, and vLLM's log probabilities as the contract's.

vLLM returns tokens and their log probabilities at once, but withholds text that may become a stop
string, and never takes back the tokens of a stop string. In a response the tokens of `logprobs`
must join to exactly the text. So a token that is not in the text has neither text nor bytes: a
special token that is skipped, or one that the tokenizer adds in front of a prompt. `LogprobStream`
counts the bytes of text and of tokens, and with stop strings a token is emitted only when the text
has all its bytes. A stop string that begins in the middle of a token shortens this token's bytes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

import xgrammar

from isthmus.v1.generate_pb2 import LogprobEntry, Logprobs, TokenLogprob

# Replaces -Infinity, which JSON cannot have; OpenAI uses the same value for impossible tokens.
_LEAST_LOGPROB: Final = -9999.0


class Vocabulary:
    """The bytes of each token, also of tokens that are part of a character.

    `size` is the number of token ids: rows of the model's output.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = size
        # Decoders skip the added tokens marked as special; `all_special_ids` has not all of them.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            token for token, entry in added.items() if entry.special
        }
        self._tokenizer = tokenizer
        # As xgrammar's TokenizerInfo in JSON; "" for a tokenizer that it does not support.
        self.serialized = ""
        try:
            info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
            self._bytes: Sequence[bytes] = info.decoded_vocab
            self.serialized = info.serialize_json()
        except (AttributeError, TypeError, ValueError, RuntimeError):
            # xgrammar does not support the tokenizer: `data` decodes each token instead, and parts
            # of characters become U+FFFD.
            self._bytes = ()

    def data(self, token: int) -> bytes:
        if token < len(self._bytes):
            return bytes(self._bytes[token])
        return str(self._tokenizer.decode([token])).encode()

    def pieces(self, tokens: Sequence[int], text: str) -> list[bytes]:
        """The bytes that each token of a prompt has in the prompt's text.

        A token that the tokenizer added to the text has none, and a space that it put in front is
        left out. If the tokens do not have this text (a tokenizer may normalise it), they are all
        returned whole.
        """
        own = [self.data(token) for token in tokens]
        rest = memoryview(text.encode())
        pieces = []
        for data in own:
            if rest[: len(data)] != data:
                without_space = data.removeprefix(b" ")
                data = without_space if rest[: len(without_space)] == without_space else b""
            pieces.append(data)
            rest = rest[len(data) :]
        return own if rest else pieces

    def entry(self, token: int, found: Any | None, data: bytes | None = None) -> LogprobEntry:
        """A token's entry, with the log probability and rank of vLLM's Logprob if there is one.

        `data` is the token's part of the text if that is not all of its bytes.
        """
        data = self.data(token) if data is None else data
        entry = LogprobEntry(id=token, text=data.decode("utf-8", "replace"), data=data)
        if found is not None:
            entry.logprob = found.logprob if math.isfinite(found.logprob) else _LEAST_LOGPROB
            if found.rank is not None:
                entry.rank = found.rank
        return entry


def token_logprob(
    vocabulary: Vocabulary,
    token: int,
    found: Mapping[int, Any] | None,
    alternatives: int,
    data: bytes | None = None,
) -> TokenLogprob:
    """A token with its likeliest alternatives, of which the token may be one.

    `found` has vLLM's Logprob by token id, of `token` and of at least as many likeliest tokens as
    the requested alternatives; None for the first token of a prompt. `data` is the token's part of
    the text if that is not all of its bytes.
    """
    if found is None:
        return TokenLogprob(token=vocabulary.entry(token, None, data))
    likeliest = sorted(found.items(), key=lambda item: -item[1].logprob)[:alternatives]
    return TokenLogprob(
        token=vocabulary.entry(token, found[token], data),
        top=[
            vocabulary.entry(other, value, data if other == token else None)
            for other, value in likeliest
        ],
    )


def prompt_logprobs(
    vocabulary: Vocabulary, step: Any, alternatives: int, pieces: Sequence[bytes]
) -> Iterator[TokenLogprob]:
    """The tokens of a prompt from vLLM's RequestOutput; the first has no log probability.

    `pieces` has the part of each token in the text that is echoed; it is empty without an echo.
    """
    parts = pieces or repeat(None)
    for token, found, data in zip(step.prompt_token_ids, step.prompt_logprobs, parts, strict=False):
        yield token_logprob(vocabulary, token, found, alternatives, data)


class LogprobStream:
    """The log probabilities of one choice, withheld as long as the text that they belong to.

    `cut` is whether the request has stop strings: without any, tokens are emitted at once. With
    `blank_special`, special tokens have no text.
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
        """Adds a step: its text, its tokens and vLLM's Logprobs for each of them."""
        self._text_bytes += len(text.encode())
        for token, values in zip(tokens, found, strict=False):
            blank = self._blank_special and token in self._vocabulary.special_ids
            self._held.append(
                token_logprob(
                    self._vocabulary, token, values, self._alternatives, b"" if blank else None
                )
            )

    def drop_last(self) -> None:
        """Removes the newest token: it stopped the choice and is not part of the text."""
        if self._held:
            self._held.pop()

    def take(self, *, ended_by_string: bool = False, ended: bool = False) -> Logprobs | None:
        """The tokens to emit now; all if `ended`, but none after a stop string."""
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
