"""POST /v1/chat/completions: the response as one document."""

from __future__ import annotations

from collections.abc import Mapping

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
    TextDocument,
    TextOptions,
    Usage,
    admission,
    encode,
    finish_reason,
)
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse
from isthmus.v1.usage_pb2 import Admitted


class ChatOptions(TextOptions, frozen=True, gc=False, kw_only=True):
    """Chat parameters that decide how a response is written.

    Attributes:
        logprobs: Whether choices have log probabilities.
        top_logprobs: Alternatives listed for each token.
        legacy_functions: Whether calls are written as `function_call` instead of `tool_calls`.
        calls_forced: Whether the model must call a tool, so a stream opens with null content.
        service_tier: Whether the response has `service_tier`; it is always "default".
        metadata: The request's `metadata`, returned in the document.
    """

    logprobs: bool = False
    top_logprobs: int = 0
    legacy_functions: bool = False
    calls_forced: bool = False
    service_tier: bool = False
    metadata: Mapping[str, str] | None = None


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
    token_ids: list[int] | UnsetType = UNSET


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
    prompt_token_ids: list[int] | UnsetType = UNSET


class _ChoiceState(Struct):
    """Collects the output of one choice."""

    text: list[str] = []
    finish: str | None = None
    reasoning: list[str] = []
    tool_calls: dict[int, ToolCall] = {}
    logprobs: list[ChatLogprob] = []
    token_ids: list[int] = []

    def add(self, delta: ChoiceDelta, options: ChatOptions) -> None:
        self.text.append(delta.text)
        if reasoning := delta.reasoning:
            self.reasoning.append(reasoning)
        for piece in delta.tool_calls[:]:
            if tool_call := self.tool_calls.get(piece.index):
                tool_call.function.arguments += piece.arguments
            else:
                function = FunctionCall(piece.name, piece.arguments)
                self.tool_calls[piece.index] = ToolCall(piece.id, "function", function)
        if options.token_ids:
            self.token_ids += delta.token_ids[:]
        if options.logprobs and delta.HasField("logprobs"):
            self.logprobs += chat_logprobs(delta.logprobs, options.top_logprobs)

    def choice(self, index: int, options: ChatOptions) -> Choice:
        if self.finish is None:
            raise errors.internal_error()
        text = "".join(self.text)
        message = Message(content=text)
        if self.reasoning:
            message.reasoning = message.reasoning_content = "".join(self.reasoning)
        if self.tool_calls:
            tool_calls = [tool_call for _, tool_call in sorted(self.tool_calls.items())]
            message.content = text or None
            if options.legacy_functions:
                message.function_call = tool_calls[0].function
            else:
                message.tool_calls = tool_calls
        logprobs = ChatLogprobs(self.logprobs) if options.logprobs else None
        token_ids = self.token_ids if options.token_ids else UNSET
        return Choice(index, message, logprobs, self.finish, token_ids)


class ChatResponse(TextDocument[ChatOptions]):
    """The document of one chat completion, which has one source."""

    def __init__(self, options: ChatOptions, identity: Identity) -> None:
        super().__init__(options, identity)
        self._fingerprint = UNKNOWN_FINGERPRINT
        self._choices = [_ChoiceState() for _ in range(options.n)]
        self._prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
        self._prompt_token_ids: list[int] = []

    def source(self, _number: int) -> ChatResponse:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        if admitted := admission(part):
            self._fingerprint = admitted.system_fingerprint or self._fingerprint
        return admitted

    def text(self, text: str) -> bytes:
        self._choices[0].text.append(text)
        return b""

    def part(self, part: GenerateResponse) -> bytes:
        """Adds deltas, then finishes; skips choices that are unknown or finished."""
        choices, options = self._choices, self._options
        for delta in part.deltas[:]:
            index = delta.index
            if index < len(choices) and choices[index].finish is None:
                choices[index].add(delta, options)
        for finish in part.finishes[:]:
            index = finish.index
            if index < len(choices) and choices[index].finish is None:
                choices[index].finish = finish_reason(
                    finish.reason, legacy_functions=options.legacy_functions
                )
        if part.HasField("usage"):
            self._usage.add(part.usage)
        if part.HasField("prompt_logprobs"):
            self._prompt_logprobs = prompt_logprobs(part.prompt_logprobs)
        if options.token_ids:
            self._prompt_token_ids += part.prompt_token_ids[:]
        return b""

    def document(self) -> bytes:
        options = self._options
        return encode(
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
                prompt_token_ids=self._prompt_token_ids if options.token_ids else UNSET,
            )
        )
