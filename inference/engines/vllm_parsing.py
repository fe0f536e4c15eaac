"""Tool calls and reasoning in the text of one choice, found by vLLM's parsers.

A model writes reasoning and tool calls as text between marks: `<think>...</think>`, or
`<tool_call>{...}</tool_call>`. vLLM has a parser per model family. `parse_delta` takes new text
with its token ids and returns a DeltaMessage: content, reasoning, or pieces of tool calls. It
withholds text that may begin a mark, and a call's name until it is complete. vLLM's detokenizer
withholds text too, although it returns the tokens at once:

    withheld by vLLM                                 until
    bytes of an incomplete character                 its last byte, or a byte that cannot follow
    text that may become a stop string (`text_lags`) it cannot become one, or the choice ends

Some parsers miss a mark if one call brings more text beside it, and steps have several tokens
whenever the reader is slower than the model. So `_TokenSplitter` feeds each token alone, with the
characters that it completes; a token waits in a queue until vLLM has returned these characters.

    text not yet fed                                 fed to the parser
    at least the first token's characters            this token with them; then the next one
    fewer, and `text_lags` or there is none          nothing, until the next step
    any other rest                                   all text with all tokens of the queue: some
                                                     tokens decode differently beside others

The last step flushes the queue in one piece, which may be empty, because each parser must be called
with `finished` exactly once. It is not called so if the length limit ended the choice: a parser
would send a part of a call's name as the name, and a part of a mark as the end of the arguments.

Text that a parser withheld for a call that was never completed is content after all and is emitted
last; but only for tool_choice "auto" and a choice with neither calls nor reasoning, because only
then is all text either content or withheld. vllm_call_repair repairs what parsers return.

Calls that a grammar has written are read by call_reader instead, behind the parser of reasoning.
"""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id

from inference.engines.call_reader import CallForm, CallReader, Piece
from inference.engines.vllm_call_repair import CallRepair
from inference.engines.vllm_logprobs import Vocabulary


@dataclass(frozen=True, slots=True)
class Parsing:
    """The parsing of the choices of one chat; `new_parser` constructs vLLM's parser for one choice.

    `text_lags` is whether vLLM withholds text that may become a stop string. `form` is that of the
    calls if a grammar writes them; the parser is then for reasoning only.
    """

    new_parser: Callable[[], Any]
    chat: Any
    prompt_ids: list[int]
    text_lags: bool
    form: CallForm | None = None

    def choice(self, vocabulary: Vocabulary) -> ChoiceParser:
        return ChoiceParser(self, vocabulary)


def are_whole(calls: Mapping[int, list[str]]) -> bool:
    """Whether no call was cut within its arguments, which are given in pieces."""
    try:
        for pieces in calls.values():
            json.loads("".join(pieces))
    except (ValueError, RecursionError):
        return False
    return True


class ChoiceParser:
    """The parser of one choice."""

    def __init__(self, parsing: Parsing, vocabulary: Vocabulary) -> None:
        self._parsing = parsing
        self._parser = parsing.new_parser()
        self._repair = CallRepair(self._parser, parsing.new_parser, parsing.chat)
        self._reader = CallReader(parsing.form) if parsing.form else None
        self._splitter = _TokenSplitter(
            vocabulary,
            blank_special=parsing.chat.skip_special_tokens,
            text_lags=parsing.text_lags,
        )
        self._token_ids: list[int] = []
        self._text: list[str] = []
        self._content: list[str] = []
        self._has_reasoning = self._has_calls = False

    def feed(self, text: str, token_ids: list[int], finish: str | None) -> Iterator[Any]:
        """Parses a step; yields vLLM's DeltaMessages.

        `finish` is vLLM's reason if the step is the choice's last one.
        """
        self._token_ids += token_ids
        pieces = self._splitter.split(text, token_ids, finish is not None)
        for piece, tokens in pieces[:-1]:
            yield from self._feed(piece, tokens, None)
        if pieces:
            yield from self._feed(*pieces[-1], finish)
        if finish is None:
            return
        if self._reader is not None:
            yield from map(_message, self._reader.rest())
            return
        for message in self._repair.rest(self._answer(), is_cut=finish == "length"):
            yield self._sent(message)
        if withheld := self._withheld_content():
            yield DeltaMessage(content=withheld)

    def _feed(self, text: str, token_ids: list[int], finish: str | None) -> Iterator[Any]:
        self._text.append(text)
        if self._repair.reads_text:
            message = DeltaMessage(content=text)
        else:
            message = self._parser.parse_delta(
                text,
                token_ids,
                self._parsing.chat,
                self._parsing.prompt_ids,
                finished=finish not in (None, "length"),
            )
        if message is None:
            return
        if self._reader is None:
            yield self._sent(self._repair.take(message))
            return
        text, message.content = message.content or "", None
        yield self._sent(message)
        yield from map(_message, self._reader.feed(text))

    def _sent(self, message: Any) -> Any:
        self._content.append(message.content or "")
        self._has_reasoning |= bool(message.reasoning)
        self._has_calls |= bool(message.tool_calls)
        return message

    def reasoning_tokens(self) -> int:
        reasoner = self._parser.reasoning_parser
        if reasoner is None or not self._has_reasoning:
            return 0
        counted = int(self._parser.count_reasoning_tokens(self._token_ids))
        start = getattr(reasoner, "start_token_id", None)
        if counted or start is None:
            return counted
        # Many chat templates put the opening mark into the prompt, and vLLM counts from it on.
        return int(self._parser.count_reasoning_tokens([start, *self._token_ids]))

    def _withheld_content(self) -> str:
        """Text that the parser withheld for a tool call that was never completed."""
        if self._has_calls or self._has_reasoning or self._parsing.chat.tool_choice != "auto":
            return ""
        text, content = self._answer(), "".join(self._content)
        return text[len(content) :] if text.startswith(content) else ""

    def _answer(self) -> str:
        """The text after the reasoning; empty if the reasoning has not ended."""
        text = "".join(self._text)
        reasoner = self._parser.reasoning_parser
        if reasoner is not None:
            # The marks of reasoning are not content, even if there is no reasoning between them.
            start, end = reasoner.reasoning_start_str, reasoner.reasoning_end_str
            if end:
                text = text.partition(end)[2] if end in text else text
            if start and start in text:
                return ""
        return text


def _message(piece: Piece) -> Any:
    """A piece of an answer as vLLM's parsers would return it."""
    if piece.index < 0:
        return DeltaMessage(content=piece.content)
    call = DeltaToolCall(
        index=piece.index,
        id=make_tool_call_id() if piece.name else None,
        type="function" if piece.name else None,
        function=DeltaFunctionCall(name=piece.name or None, arguments=piece.arguments),
    )
    return DeltaMessage(tool_calls=[call])


class _TokenSplitter:
    """Splits steps into single tokens, each with the characters that it completes.

    With `blank_special`, special tokens have no text. For `text_lags` see Parsing.
    """

    def __init__(self, vocabulary: Vocabulary, *, blank_special: bool, text_lags: bool) -> None:
        self._vocabulary = vocabulary
        self._blank = vocabulary.special_ids if blank_special else frozenset()
        self._text_lags = text_lags
        # "replace" decodes as vLLM's detokenizer does: U+FFFD for bytes that are not UTF-8.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Token ids with the number of characters that each completes.
        self._tokens: deque[tuple[int, int]] = deque()
        self._text = ""

    def split(self, text: str, token_ids: list[int], ended: bool) -> list[tuple[str, list[int]]]:
        """Adds a step; returns the pieces to parse now, at the end at least one."""
        self._text += text
        self._tokens.extend((token, self._characters(token)) for token in token_ids)
        pieces: list[tuple[str, list[int]]] = []
        taken = 0
        while self._tokens and taken + self._tokens[0][1] <= len(self._text):
            token, characters = self._tokens.popleft()
            pieces.append((self._text[taken : taken + characters], [token]))
            taken += characters
        self._text = self._text[taken:]
        # Without lag, the rest of the text belongs to tokens that decode differently when alone.
        left_over = self._text and not self._text_lags
        if left_over or (ended and (self._text or self._tokens or not pieces)):
            pieces.append((self._text, [token for token, _ in self._tokens]))
            self._text = ""
            self._tokens.clear()
        return pieces

    def _characters(self, token: int) -> int:
        """The number of characters that the token completes."""
        if token in self._blank:
            return 0
        return len(self._decoder.decode(self._vocabulary.data(token)))
