"""Chat completions: the contract's answer to one document."""

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
    finish_reason,
)
from edge.openai.text.usage import Usage, UsageSum
from edge.openai.translator import Translator
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    GenerateResponse,
    ToolCallDelta,
)
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class ChatOptions(Struct, frozen=True, gc=False):
    """What the request says about the form of its answer."""

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
class CallPiece:
    """What one message adds to one tool call; `opened` with the call's first piece."""

    index: int
    id: str
    name: str
    arguments: str
    opened: bool


@dataclass(slots=True)
class ToolCalls:
    """Which calls of a choice have begun."""

    _begun: set[int] = field(default_factory=set)

    def take(self, pieces: Iterable[ToolCallDelta]) -> list[CallPiece]:
        """The pieces of one message, at most one a call."""
        taken: dict[int, CallPiece] = {}
        for piece in pieces:
            known = taken.get(piece.index)
            if known is None:
                opened = piece.index not in self._begun
                self._begun.add(piece.index)
                taken[piece.index] = CallPiece(
                    piece.index, piece.id, piece.name, piece.arguments, opened
                )
            else:
                known.arguments += piece.arguments
        return list(taken.values())


class ToolCall(Struct):
    """A call that the model made."""

    id: str
    type: str
    function: FunctionCall


class Message(Struct, kw_only=True):
    """What the model says; reasoning goes by both names that clients read."""

    role: str = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Choice(Struct):
    """One answer of several."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(Struct, kw_only=True):
    """The document."""

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
    """What a choice has said so far."""

    __slots__ = ("_calls", "_logprobs", "_opened", "_reasoning", "finish", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.finish: str | None = None
        self._reasoning: list[str] = []
        # Most choices call nothing.
        self._opened: ToolCalls | None = None
        self._calls: dict[int, ToolCall] = {}
        self._logprobs: list[ChatLogprob] = []

    def add(self, delta: ChoiceDelta, top_logprobs: int) -> None:
        self.text.append(delta.text)
        if reasoning := delta.reasoning:
            self._reasoning.append(reasoning)
        if tool_calls := delta.tool_calls:
            self._add_calls(tool_calls)
        if delta.HasField("logprobs"):
            self._logprobs += chat_logprobs(delta.logprobs, top_logprobs)

    def _add_calls(self, pieces: Iterable[ToolCallDelta]) -> None:
        if self._opened is None:
            self._opened = ToolCalls()
        for piece in self._opened.take(pieces):
            if piece.opened:
                self._calls[piece.index] = ToolCall(
                    piece.id, "function", FunctionCall(piece.name, piece.arguments)
                )
            else:
                self._calls[piece.index].function.arguments += piece.arguments

    def choice(self, index: int, options: ChatOptions) -> Choice:
        if self.finish is None:
            raise errors.internal_error()
        calls = [call for _, call in sorted(self._calls.items())]
        text = "".join(self.text)
        message = Message(content=text if text or not calls else None)
        if reasoning := "".join(self._reasoning):
            message.reasoning = message.reasoning_content = reasoning
        if calls and options.legacy_functions:
            message.function_call = calls[0].function
        elif calls:
            message.tool_calls = calls
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
        """A chat has one source: this."""
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        """Takes the fingerprint."""
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
        """Adds deltas, then finishes; choices unknown or finished are passed over."""
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
        """The document."""
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
