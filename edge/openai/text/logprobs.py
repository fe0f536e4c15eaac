"""Log probabilities in OpenAI's two shapes, and the prompt's in vLLM's."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from isthmus.v1.generate_pb2 import LogprobEntry, Logprobs, TokenLogprob

# OpenAI's value for "very unlikely"; infinities and NaN are not JSON.
_FLOOR: Final = -9999.0


class TopLogprob(Struct):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of a chat answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """`logprobs` of a chat choice."""

    content: list[ChatLogprob] | None
    refusal: list[ChatLogprob] | None = None


class CompletionLogprobs(Struct):
    """`logprobs` of a legacy choice: four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def extend(self, other: CompletionLogprobs) -> None:
        self.tokens += other.tokens
        self.token_logprobs += other.token_logprobs
        self.top_logprobs += other.top_logprobs
        self.text_offset += other.text_offset


class PromptLogprob(Struct):
    """A token of the prompt in vLLM's shape."""

    logprob: float
    rank: int | None
    decoded_token: str


def chat_logprobs(logprobs: Logprobs, top: int) -> list[ChatLogprob]:
    """The tokens, each with at most `top` alternatives."""
    return [
        ChatLogprob(
            token=token.token.text,
            logprob=_number(token.token),
            bytes=_bytes(token.token),
            top_logprobs=[
                TopLogprob(token=entry.text, logprob=_number(entry), bytes=_bytes(entry))
                for entry in token.top[:top]
            ],
        )
        for token in logprobs.tokens
    ]


class TextPosition:
    """The place of the next token in a text: the number of characters that begin before it.

    Tokens may end inside a character. Bytes that are not UTF-8 are U+FFFD in the text.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = getincrementaldecoder("utf-8")("replace")

    @property
    def offset(self) -> int:
        begun, _ = self._decoder.getstate()
        return self._offset + bool(begun)

    def pass_over(self, entry: LogprobEntry) -> None:
        self._offset += len(self._decoder.decode(entry.data or entry.text.encode()))

    def end_text(self) -> None:
        """The next token begins another text, which completes no character of this one."""
        self._offset += len(self._decoder.decode(b"", final=True))


def completion_logprobs(
    tokens: Iterable[TokenLogprob], top: int, position: TextPosition
) -> CompletionLogprobs:
    """The tokens in the legacy shape; moves the position behind them.

    Args:
        tokens: Consecutive tokens of one choice.
        top: Alternatives for each token; the token itself is always listed and not counted.
        position: The place of the first token.
    """
    lists = CompletionLogprobs([], [], [], [])
    for token in tokens:
        entry = token.token
        name = _legacy_text(entry)
        lists.tokens.append(name)
        lists.text_offset.append(position.offset)
        position.pass_over(entry)
        if not entry.HasField("logprob"):
            # The first token of a prompt has no probability.
            lists.token_logprobs.append(None)
            lists.top_logprobs.append(None)
            continue
        lists.token_logprobs.append(_number(entry))
        likeliest = {_legacy_text(other): _number(other) for other in token.top[:top]}
        likeliest.setdefault(name, _number(entry))
        lists.top_logprobs.append(likeliest)
    return lists


def prompt_logprobs(logprobs: Logprobs) -> list[dict[str, PromptLogprob] | None]:
    """The prompt's tokens as vLLM sends them: token id to its value, null for the first."""
    return [
        {
            str(entry.id): PromptLogprob(
                _number(entry), entry.rank if entry.HasField("rank") else None, entry.text
            )
            for entry in (token.token, *token.top)
        }
        if token.token.HasField("logprob")
        else None
        for token in logprobs.tokens
    ]


def _number(entry: LogprobEntry) -> float:
    # NaN compares false, so it becomes the floor too.
    return entry.logprob if entry.logprob >= _FLOOR else _FLOOR


def _bytes(entry: LogprobEntry) -> list[int] | None:
    return list(entry.data) if entry.data else None


def _legacy_text(entry: LogprobEntry) -> str:
    """The token's text; for a part of a character, its bytes in OpenAI's notation."""
    if "\ufffd" not in entry.text:
        return entry.text
    try:
        return entry.data.decode() or entry.text
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.data)
