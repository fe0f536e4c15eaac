"""vLLM's parsers of tool calls and reasoning, fed with the steps of one choice."""

from __future__ import annotations

import codecs
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
        self._splitter = _Splitter(
            vocabulary,
            blank_special=parsing.chat.skip_special_tokens,
            text_lags=parsing.holds_text,
        )
        self._token_ids: list[int] = []
        self._raw: list[str] = []
        self._said: list[str] = []
        self._reasoned = self._called = False

    def feed(self, text: str, token_ids: list[int], ended: bool) -> Iterator[Any]:
        """A step's text and tokens -> vLLM's DeltaMessages."""
        self._token_ids += token_ids
        pieces = self._splitter.split(text, token_ids, ended)
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
        reasoner = self._parser.reasoning_parser
        if reasoner is not None:
            # The marks around reasoning are nobody's text, even with none between them.
            start, end = reasoner.reasoning_start_str, reasoner.reasoning_end_str
            if end:
                raw = raw.rpartition(end)[2]
            if start and start in raw:
                return ""
        return raw[len(said) :] if raw.startswith(said) else ""


class _Splitter:
    """Splits steps into single tokens, each with the characters that it completes.

    vLLM's parsers look for marks in a step's text when they see the tokens, and some lose or leave
    a mark where a step brings more beside it; steps grow whenever the reader falls behind. vLLM
    also keeps text back whose tokens it has given: characters that are not whole yet, bytes that
    may turn out to be none, and, where `text_lags`, what may become a stop string.
    """

    def __init__(self, vocabulary: Vocabulary, *, blank_special: bool, text_lags: bool) -> None:
        self._vocabulary = vocabulary
        self._blank = vocabulary.special_ids if blank_special else frozenset()
        self._text_lags = text_lags
        # As vLLM's detokenizer does: U+FFFD for bytes that are no character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: deque[tuple[int, int]] = deque()
        self._text = ""

    def split(self, text: str, token_ids: list[int], ended: bool) -> list[tuple[str, list[int]]]:
        """A step's text and tokens -> what can be said now; at the end all, and something."""
        self._text += text
        self._tokens.extend((token, self._characters(token)) for token in token_ids)
        pieces: list[tuple[str, list[int]]] = []
        taken = 0
        while self._tokens and taken + self._tokens[0][1] <= len(self._text):
            token, characters = self._tokens.popleft()
            pieces.append((self._text[taken : taken + characters], [token]))
            taken += characters
        self._text = self._text[taken:]
        # Text that is left over without lagging belongs to tokens that read otherwise alone.
        left_over = self._text and not self._text_lags
        if left_over or (ended and (self._text or self._tokens or not pieces)):
            pieces.append((self._text, [token for token, _ in self._tokens]))
            self._text = ""
            self._tokens.clear()
        return pieces

    def _characters(self, token: int) -> int:
        """How many characters the token completes."""
        if token in self._blank:
            return 0
        return len(self._decoder.decode(self._vocabulary.data(token)))
