"""vLLM's parsers of tool calls and reasoning, fed with the steps of one choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage

from inference.engines.vllm_logprobs import Vocabulary


@dataclass(frozen=True, slots=True)
class Parsing:
    """How the answers to one chat are taken apart.

    Attributes:
        new_parser: Makes vLLM's parser for a choice.
        chat: vLLM's request.
        prompt_ids: Tokens of the prompt.
        holds_text: vLLM keeps text back that may become a stop string.
    """

    new_parser: Callable[[], Any]
    chat: Any
    prompt_ids: list[int]
    holds_text: bool

    def choice(self, vocabulary: Vocabulary) -> ChoiceParser:
        """A parser for one choice."""
        return ChoiceParser(self, vocabulary)


class ChoiceParser:
    """Takes one choice apart."""

    def __init__(self, parsing: Parsing, vocabulary: Vocabulary) -> None:
        self._parsing = parsing
        self._parser = parsing.new_parser()
        self._splitter = _Splitter(vocabulary, parsing.chat.skip_special_tokens)
        self._token_ids: list[int] = []
        self._raw: list[str] = []
        self._said: list[str] = []
        self._reasoned = self._called = False

    def feed(self, text: str, token_ids: list[int], ended: bool) -> Iterator[Any]:
        """A step's text and tokens -> vLLM's DeltaMessages."""
        self._token_ids += token_ids
        pieces = self._splitter.split(text, token_ids, ended or not self._parsing.holds_text)
        for piece, tokens in pieces[:-1]:
            yield from self._feed(piece, tokens, False)
        if pieces:
            yield from self._feed(*pieces[-1], ended)
        if ended and (lost := self._lost_text()):
            yield DeltaMessage(content=lost)

    def _feed(self, text: str, token_ids: list[int], ended: bool) -> Iterator[Any]:
        message = self._parser.parse_delta(
            text, token_ids, self._parsing.chat, self._parsing.prompt_ids, finished=ended
        )
        self._raw.append(text)
        if message is not None:
            self._said.append(message.content or "")
            self._reasoned |= bool(message.reasoning)
            self._called |= bool(message.tool_calls)
            yield message

    def reasoning_tokens(self) -> int:
        """Of the tokens so far, those spent on reasoning."""
        reasoner = self._parser.reasoning_parser
        if reasoner is None or not self._reasoned:
            return 0
        counted = int(self._parser.count_reasoning_tokens(self._token_ids))
        start = getattr(reasoner, "start_token_id", None)
        if counted or start is None:
            return counted
        # Many templates open the reasoning themselves; vLLM counts from the opening token on.
        return int(self._parser.count_reasoning_tokens([start, *self._token_ids]))

    def _lost_text(self) -> str:
        """What a parser took for a call that never came to be: it is text after all."""
        if self._called or self._reasoned or self._parsing.chat.tool_choice != "auto":
            return ""
        raw, said = "".join(self._raw), "".join(self._said)
        return raw[len(said) :] if raw.startswith(said) else ""


class _Splitter:
    """Splits steps into single tokens, each with its text.

    vLLM's parsers look for marks in a step's text when they see the tokens, and some lose or leave
    a mark where a step brings more beside it; steps grow whenever the reader falls behind.
    """

    def __init__(self, vocabulary: Vocabulary, blank_special: bool) -> None:
        self._vocabulary = vocabulary
        self._blank = vocabulary.special_ids if blank_special else frozenset()
        self._tokens: deque[int] = deque()
        self._text = b""

    def split(self, text: str, token_ids: list[int], flush: bool) -> list[tuple[str, list[int]]]:
        """Whole characters with their tokens; without `flush`, no token before its text."""
        if flush and len(token_ids) <= 1 and not self._tokens and not self._text:
            return [(text, token_ids)]
        self._text += text.encode()
        self._tokens += token_ids
        pieces: list[tuple[str, list[int]]] = []
        while count := self._next():
            pieces.append(self._take(count))
        if flush and (self._text or self._tokens):
            pieces.append(self._take(len(self._tokens)))
        return pieces

    def _next(self) -> int:
        """How many tokens bring the next whole characters; 0 where they are not all there."""
        size = 0
        for count, token in enumerate(self._tokens, 1):
            size += self._size(token)
            if size > len(self._text):
                return 0
            if size == len(self._text) or self._text[size] & 0xC0 != 0x80:
                return count
        return 0

    def _take(self, count: int) -> tuple[str, list[int]]:
        tokens = [self._tokens.popleft() for _ in range(count)]
        size = sum(map(self._size, tokens))
        if not self._tokens:
            size = len(self._text)
        text, self._text = self._text[:size].decode(), self._text[size:]
        return text, tokens

    def _size(self, token: int) -> int:
        return 0 if token in self._blank else len(self._vocabulary.data(token))
