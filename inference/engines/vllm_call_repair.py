"""Repairs of the tool calls that vLLM's parsers stream.

A parser of vLLM reads an answer in two ways: `extract_tool_calls` reads it whole, `parse_delta`
reads it token by token. Parsers of older model families have separate code for each, and that for
tokens has faults. They are repaired when the choice has ended, by reading the whole answer:

    fault                                             repair
    a call's text is sent as content                  text from the call's `mark` on is withheld
    arguments are wrong, or calls are missing         calls are only sent at the end (`whole`)
    even the whole answer is read wrongly, although   this module reads it (`array`)
      its calls are one JSON array after the mark
    the end of a call's arguments is missing          it is sent at the end, with each parser
    arguments are empty                               `{}` is sent at the end, with each parser
    marks are lost because they are special tokens    special tokens stay in the text (`special`)

If the whole answer has no call either, the withheld text is content. docs/tool-parsers.md has the
faults that remain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
)
from vllm.parser.abstract_parser import DelegatingParser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.utils import partial_tag_overlap


@dataclass(frozen=True, slots=True)
class Repair:
    """The repairs of one parser; see above."""

    mark: str = ""
    whole: bool = False
    array: bool = False
    special: bool = False


# By the class of vLLM's parser.
_REPAIRS: Final = {
    "DeepSeekV3ToolParser": Repair(special=True),
    "DeepSeekV31ToolParser": Repair(special=True),
    "DotsToolParser": Repair(special=True),
    "Ernie45ToolParser": Repair(special=True),
    "FunctionGemmaToolParser": Repair("<start_function_call>", whole=True),
    "Granite20bFCToolParser": Repair("<function_call>"),
    "HYV3ToolParser": Repair(special=True),
    "HYV4ToolParser": Repair(special=True),
    "HunyuanA13BToolParser": Repair("<tool_calls>", whole=True, array=True),
    "Internlm2ToolParser": Repair("<|action_start|>", whole=True),
    "JambaToolParser": Repair("<tool_calls>", whole=True, array=True),
    "Llama3JsonToolParser": Repair('{"'),
    "MiniCPM5XMLToolParser": Repair("<function"),
    "MinimaxM3ToolParser": Repair(special=True),
    "Olmo3PythonicToolParser": Repair("<function_calls>"),
    "Phi4MiniJsonToolParser": Repair("functools[", whole=True, array=True),
    "xLAMToolParser": Repair(whole=True),
}


def repair_of(tool_parser: type[Any] | None) -> Repair:
    """The repairs of vLLM's parser of this class."""
    return _REPAIRS.get(tool_parser.__name__, Repair()) if tool_parser else Repair()


class CallRepair:
    """The repairs of one choice.

    `parser` is vLLM's parser of the choice, `new_parser` constructs another one, and `chat` is
    their request.

    Attributes:
        reads_text: Whether the text itself is to be taken instead of what vLLM's parser returns.
    """

    def __init__(self, parser: Any, new_parser: Callable[[], Any], chat: Any) -> None:
        self._new_parser = new_parser
        self._chat = chat
        tool_parser = parser.tool_parser
        # Parsers with a `parse_delta` of their own do not use the tool parser. And vLLM reads a
        # forced call as JSON, unless the grammar is of the parser's own format.
        self._applies = (
            type(parser).parse_delta is DelegatingParser.parse_delta
            and tool_parser is not None
            and bool(chat.tools)
            and not tool_parser.engine_based_streaming
            and (chat.tool_choice == "auto" or not tool_parser.supports_required_and_named)
        )
        self._repair = repair_of(type(tool_parser)) if self._applies else Repair()
        self.reads_text = bool(
            self._repair.whole and self._repair.mark and parser.reasoning_parser is None
        )
        self._withheld = ""
        self._marked = False
        self._sent: list[_Call] = []

    def take(self, message: Any) -> Any:
        """The parts of vLLM's DeltaMessage that are sent now."""
        if message.content:
            message.content = self._before_mark(message.content)
        calls, message.tool_calls = message.tool_calls or (), []
        for call in () if self._repair.whole else calls:
            name = (call.function and call.function.name) or ""
            arguments = (call.function and call.function.arguments) or ""
            self._sent += [_Call("", "", "")] * (call.index + 1 - len(self._sent))
            sent = self._sent[call.index]
            self._sent[call.index] = _Call("", sent.name or name, sent.arguments + arguments)
            message.tool_calls.append(call)
        return message

    def rest(self, text: str, *, is_cut: bool) -> Iterator[Any]:
        """The DeltaMessages to send when the choice has ended with this text.

        `is_cut` is whether the length limit ended it.
        """
        calls = list(self._missing(text)) if self._applies and self._is_doubtful() else []
        if not is_cut:
            completed = {call.index for call in calls}
            calls += [
                DeltaToolCall(index=index, function=DeltaFunctionCall(arguments="{}"))
                for index, call in enumerate(self._sent)
                if not call.arguments and index not in completed
            ]
        if calls:
            yield DeltaMessage(tool_calls=calls)
        if self._withheld and not (self._marked and (calls or self._sent)):
            yield DeltaMessage(content=self._withheld)

    def _before_mark(self, content: str) -> str:
        mark = self._repair.mark
        if not mark:
            return content
        self._withheld += content
        if self._marked:
            return ""
        start = self._withheld.find(mark)
        self._marked = start >= 0
        if not self._marked:
            start = len(self._withheld) - partial_tag_overlap(self._withheld, mark)
        content, self._withheld = self._withheld[:start], self._withheld[start:]
        return content

    def _is_doubtful(self) -> bool:
        """Whether the whole answer may have more than was sent."""
        return (
            self._repair.whole
            or self._marked
            or not all(_is_json(call.arguments) for call in self._sent)
        )

    def _missing(self, text: str) -> Iterator[Any]:
        """The parts of the answer's calls that have not been sent."""
        for index, call in enumerate(self._read(text)):
            if index >= len(self._sent):
                function = DeltaFunctionCall(name=call.name, arguments=call.arguments)
                yield DeltaToolCall(index=index, id=call.id, type="function", function=function)
                continue
            sent = self._sent[index]
            is_start = sent.name == call.name and call.arguments.startswith(sent.arguments)
            if is_start and not _is_json(sent.arguments):
                function = DeltaFunctionCall(arguments=call.arguments[len(sent.arguments) :])
                yield DeltaToolCall(index=index, function=function)

    def _read(self, text: str) -> list[_Call]:
        if self._repair.array:
            return _read_array(text, self._repair.mark)
        # A parser is for one answer: it keeps what it has seen.
        tool_parser = self._new_parser().tool_parser
        try:
            found = tool_parser.extract_tool_calls(text, self._chat).tool_calls
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            # Some parsers fail on an incomplete call.
            return []
        return [_Call(call.id, call.function.name, call.function.arguments) for call in found]


class _Call(NamedTuple):
    id: str
    name: str
    arguments: str


def _read_array(text: str, mark: str) -> list[_Call]:
    """Reads the JSON array of calls that follows the mark; empty if there is none."""
    start = text.find("[", max(text.find(mark), 0))
    if mark not in text or start < 0:
        return []
    try:
        items, _ = json.JSONDecoder().raw_decode(text[start:])
        return [
            _Call(
                make_tool_call_id(),
                item["name"],
                json.dumps(item.get("arguments", item.get("parameters", {})), ensure_ascii=False),
            )
            for item in items
            if isinstance(item, dict) and isinstance(item.get("name"), str)
        ]
    except (ValueError, RecursionError):
        return []


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
