"""POST /v1/chat/completions: the response as one document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from edge.openai import errors
from edge.openai.chat.schema import FunctionCall
from edge.openai.text.logprobs import (
    ChatLogprob,
    ChatLogprobs,
    PromptLogprob,
    chat_logprobs,
    prompt_logprobs,
)
from edge.openai.text.translator import (
    UNKNOWN_FINGERPRINT,
    ChatFinishReason,
    Identity,
    Usage,
    UsageSum,
    finish_reason,
)
from edge.openai.translator import Translator
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    GenerateResponse,
    ToolCallDelta,
)
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class ChatOptions(Struct, frozen=True, gc=False):
    """The parameters of a request that decide how its response is written.

    Attributes:
        model: Name of the model to echo.
        n: Number of choices.
        include_usage: Whether a stream ends with a usage chunk.
        logprobs: Whether choices have log probabilities.
        top_logprobs: Alternatives listed for each token.
        legacy_functions: Whether calls are written as `function_call` instead of `tool_calls`.
        calls_forced: Whether the model must call a tool, so a stream opens with null content.
        service_tier: Whether the response has `service_tier`; it is always "default".
        metadata: The request's own, returned in the document.
    """

    model: str
    n: int = 1
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    legacy_functions: bool = False
    calls_forced: bool = False
    service_tier: bool = False
    metadata: Mapping[str, str] | None = None


@dataclass(slots=True)
class ToolCallPiece:
    """The part of one tool call that arrived in one message.

    Attributes:
        index: Number of the tool call within its choice.
        id, name: Of the tool call; only meaningful in its first piece.
        arguments: More JSON text of its arguments.
        first: Whether this is the first piece of the tool call.
    """

    index: int
    id: str
    name: str
    arguments: str
    first: bool


@dataclass(slots=True)
class ToolCallMerger:
    """Merges the tool call deltas of one choice and remembers which tool calls have begun."""

    _begun: set[int] = field(default_factory=set)

    def merge(self, deltas: Iterable[ToolCallDelta]) -> list[ToolCallPiece]:
        """Merges the deltas of one message to one piece for each tool call."""
        pieces: dict[int, ToolCallPiece] = {}
        for delta in deltas:
            piece = pieces.get(delta.index)
            if piece is None:
                first = delta.index not in self._begun
                self._begun.add(delta.index)
                pieces[delta.index] = ToolCallPiece(
                    delta.index, delta.id, delta.name, delta.arguments, first
                )
            else:
                piece.arguments += delta.arguments
        return list(pieces.values())


class ToolCall(Struct):
    """A tool call of the model."""

    id: str
    type: str
    function: FunctionCall


class Message(Struct, kw_only=True):
    """The message of a choice. The reasoning is sent under both names that clients read."""

    role: str = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Choice(Struct):
    """One of the `n` messages that the model generated."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(Struct, kw_only=True):
    """The response to a chat completion that is not streamed."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    metadata: Mapping[str, str] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class _ChoiceState:
    """A choice while its output is collected."""

    __slots__ = ("_logprobs", "_merger", "_reasoning", "_tool_calls", "finish", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.finish: str | None = None
        self._reasoning: list[str] = []
        # Created with the first tool call; most choices have none.
        self._merger: ToolCallMerger | None = None
        self._tool_calls: dict[int, ToolCall] = {}
        self._logprobs: list[ChatLogprob] = []

    def add(self, delta: ChoiceDelta, top_logprobs: int) -> None:
        self.text.append(delta.text)
        if reasoning := delta.reasoning:
            self._reasoning.append(reasoning)
        if tool_calls := delta.tool_calls:
            self._add_tool_calls(tool_calls)
        if delta.HasField("logprobs"):
            self._logprobs += chat_logprobs(delta.logprobs, top_logprobs)

    def _add_tool_calls(self, deltas: Iterable[ToolCallDelta]) -> None:
        if self._merger is None:
            self._merger = ToolCallMerger()
        for piece in self._merger.merge(deltas):
            if piece.first:
                self._tool_calls[piece.index] = ToolCall(
                    piece.id, "function", FunctionCall(piece.name, piece.arguments)
                )
            else:
                self._tool_calls[piece.index].function.arguments += piece.arguments

    def choice(self, index: int, options: ChatOptions) -> Choice:
        if self.finish is None:
            raise errors.internal_error()
        tool_calls = [tool_call for _, tool_call in sorted(self._tool_calls.items())]
        text = "".join(self.text)
        message = Message(content=text if text or not tool_calls else None)
        if reasoning := "".join(self._reasoning):
            message.reasoning = message.reasoning_content = reasoning
        if tool_calls and options.legacy_functions:
            message.function_call = tool_calls[0].function
        elif tool_calls:
            message.tool_calls = tool_calls
        logprobs = ChatLogprobs(self._logprobs) if options.logprobs else None
        return Choice(index, message, logprobs, self.finish)


class ChatResponse(Translator[GenerateResponse]):
    """The document of one chat, which has one source."""

    def __init__(self, options: ChatOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._fingerprint = UNKNOWN_FINGERPRINT
        self._choices = [_ChoiceState() for _ in range(options.n)]
        self._usage = UsageSum()
        self._prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET

    def source(self, _number: int) -> ChatResponse:
        """This object; a chat has one source."""
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        """Stores the fingerprint."""
        if part is None or not part.HasField("admitted"):
            return None
        admitted = part.admitted
        self._fingerprint = admitted.system_fingerprint or self._fingerprint
        return admitted

    def text(self, text: str) -> bytes:
        """Adds to choice 0."""
        self._choices[0].text.append(text)
        return b""

    def part(self, part: GenerateResponse) -> bytes:
        """Adds deltas, then finishes; skips choices that are unknown or finished."""
        choices = self._choices
        for delta in part.deltas:
            index = delta.index
            if index < len(choices) and choices[index].finish is None:
                choices[index].add(delta, self._options.top_logprobs)
        for finish in part.finishes:
            index = finish.index
            if index < len(choices) and choices[index].finish is None:
                choices[index].finish = finish_reason(
                    finish.reason, legacy_functions=self._options.legacy_functions
                )
        if part.HasField("usage"):
            self._usage.add(part.usage)
        if part.HasField("prompt_logprobs"):
            self._prompt_logprobs = prompt_logprobs(part.prompt_logprobs)
        return b""

    def document(self) -> bytes:
        """The JSON of a ChatCompletion.

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        options = self._options
        return _encode(
            ChatCompletion(
                id=self._identity.completion_id,
                created=self._identity.created,
                model=options.model,
                choices=[state.choice(i, options) for i, state in enumerate(self._choices)],
                usage=self._usage.total(),
                service_tier="default" if options.service_tier else UNSET,
                system_fingerprint=self._fingerprint,
                metadata=UNSET if options.metadata is None else options.metadata,
                prompt_logprobs=self._prompt_logprobs,
            )
        )
