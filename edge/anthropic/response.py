"""POST /v1/messages: the response as one document."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from edge.openai import errors
from edge.openai.text.blocks import Block, Blocks, Kind, NoWriter
from edge.openai.text.translator import Identity, admission, encode
from edge.openai.translator import Document
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_TOOL_CALLS,
    GenerateResponse,
)
from isthmus.v1.usage_pb2 import Admitted, Usage

_STOP_REASONS: Final = (
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal",
    "model_context_window_exceeded",
)  # fmt: skip
StopReason = Annotated[str, Meta(extra_json_schema={"enum": list(_STOP_REASONS)})]
_object: Final = msgspec.json.Decoder(dict[str, Raw]).decode


class MessageOptions(Struct, frozen=True, gc=False, kw_only=True):
    """The parameters of a request that its response depends on.

    Attributes:
        model: Name of the model to echo.
        max_tokens: The limit of its output.
    """

    model: str
    max_tokens: int


class TextContent(Struct, tag_field="type", tag="text"):
    """Text of the model."""

    text: str


class ThinkingContent(Struct, tag_field="type", tag="thinking"):
    """The model's reasoning; the signature is empty."""

    thinking: str
    signature: str


class ToolUseContent(Struct, tag_field="type", tag="tool_use"):
    """A tool that the model uses. An input that is no JSON object is text in `INVALID_JSON`."""

    id: str
    name: str
    input: Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


Content = TextContent | ThinkingContent | ToolUseContent


class ThinkingTokensDetails(Struct):
    """Details of output_tokens."""

    thinking_tokens: int


class MessageUsage(Struct, kw_only=True):
    """Tokens; those of the prompt are `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokensDetails


class MessageObject(Struct, kw_only=True):
    """The response to a Messages request that is not streamed."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None = None
    usage: MessageUsage


class TokenCount(Struct):
    """The tokens of a prompt."""

    input_tokens: int


def message_usage(usage: Usage) -> MessageUsage:
    """The usage in Anthropic's terms."""
    return MessageUsage(
        input_tokens=max(usage.prompt_tokens - usage.cached_tokens, 0),
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        output_tokens_details=ThinkingTokensDetails(usage.reasoning_tokens),
    )


def stopping(blocks: Blocks, usage: Usage, max_tokens: int) -> tuple[str, str | None]:
    """The reason why a response ended, and the stop sequence that ended it.

    Raises:
        OpenAIError: 500, it has not ended.
    """
    finish = blocks.finish
    if finish is None:
        raise errors.internal_error()
    if finish.HasField("stop_string"):
        return "stop_sequence", finish.stop_string
    if finish.reason == FINISH_REASON_LENGTH:
        cut = usage.completion_tokens >= max_tokens
        return "max_tokens" if cut else "model_context_window_exceeded", None
    if finish.reason == FINISH_REASON_CONTENT_FILTER:
        return "refusal", None
    called = finish.reason == FINISH_REASON_TOOL_CALLS
    return "tool_use" if called else "end_turn", None


def _tool_input(arguments: str) -> Raw:
    """The arguments of a call as a JSON object.

    Text that is none, because the tokens ran out within it or the model wrote it so, is wrapped as
    Anthropic's documentation advises.
    """
    try:
        _object(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return Raw(encode({"INVALID_JSON": arguments}))
    return Raw((arguments or "{}").encode())


class MessageResponse(Document[GenerateResponse]):
    """The document of one message, which has one source."""

    def __init__(self, options: MessageOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._blocks = Blocks(NoWriter())
        self._usage = Usage()

    def source(self, _number: int) -> MessageResponse:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        return admission(part)

    def text(self, text: str) -> bytes:
        return self._blocks.text(text)

    def part(self, part: GenerateResponse) -> bytes:
        if part.HasField("usage"):
            self._usage = part.usage
        return self._blocks.part(part)

    def document(self) -> bytes:
        reason, sequence = stopping(self._blocks, self._usage, self._options.max_tokens)
        return encode(
            MessageObject(
                id=self._identity.completion_id,
                model=self._options.model,
                content=[_content(block) for block in self._blocks.blocks],
                stop_reason=reason,
                stop_sequence=sequence,
                usage=message_usage(self._usage),
            )
        )


def _content(block: Block) -> Content:
    if block.kind is Kind.TEXT:
        return TextContent(block.text)
    if block.kind is Kind.REASONING:
        return ThinkingContent(block.text, "")
    return ToolUseContent(block.call_id, block.name, _tool_input(block.text))
