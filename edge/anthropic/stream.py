"""POST /v1/messages: the response as server-sent events.

The order of the events, each with its `event:` line:

  event                   when                          data
  ----------------------  ----------------------------  ------------------------------------------
  message_start           once, first                   the message without content; usage with the
                                                        tokens of the prompt
  ping                    once, second
  content_block_start     a block opens                 index and the empty block; of a tool_use its
                                                        id and name
  content_block_delta     a block grows                 text_delta, thinking_delta, input_json_delta
  content_block_delta     a thinking block closes       signature_delta, which is empty
  content_block_stop      a block closes                index
  message_delta           once, after all blocks        stop_reason, stop_sequence, the whole usage
  message_stop            once, last
  error                   the response fails            Anthropic's error object; nothing follows

One block is open at a time; edge/openai/text/blocks.py decides when one opens and closes. Blocks of
text and of thinking are never empty.

A delta of plain text differs from the one before it only in its text, so the rest is encoded once
for each block:

  part       content                                                            when it is rendered
  ---------  -----------------------------------------------------------------  -------------------
  text head  event: content_block_delta                                         when the block opens
             data: {"type":"content_block_delta","index":0,"delta":{"type":
             "text_delta","text":
  text       "Hello"                                                            for each delta
  text tail  }} and an empty line                                               once
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from edge.anthropic.errors import ErrorEvent, error_object
from edge.anthropic.response import (
    Content,
    MessageObject,
    MessageOptions,
    MessageUsage,
    StopReason,
    TextContent,
    ThinkingContent,
    ToolUseContent,
    message_usage,
    stopping,
)
from edge.openai.errors import OpenAIError
from edge.openai.text.blocks import Block, Blocks, Kind
from edge.openai.text.translator import Identity, admission, encode
from edge.openai.translator import StreamTranslator
from isthmus.v1.generate_pb2 import GenerateResponse, Logprobs
from isthmus.v1.usage_pb2 import Admitted, Usage

_DELTA_TAIL: Final = b"}}\n\n"
_DELTA: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":'
)
_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
# The type of a block's deltas, and the member that has the text.
_DELTAS: Final = {
    Kind.TEXT: (b"text_delta", b"text"),
    Kind.REASONING: (b"thinking_delta", b"thinking"),
    Kind.CALL: (b"input_json_delta", b"partial_json"),
}
_NO_INPUT: Final = Raw(b"{}")


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """The first event: the message, still without content."""

    message: MessageObject


class Ping(Struct, tag_field="type", tag="ping"):
    """An event without data."""


class ContentBlockStart(Struct, tag_field="type", tag="content_block_start"):
    """A block opens; its text or input is empty."""

    index: int
    content_block: Content


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """More of a reasoning."""

    thinking: str


class SignatureDelta(Struct, tag_field="type", tag="signature_delta"):
    """The signature of a reasoning, which is empty."""

    signature: str


class InputJsonDelta(Struct, tag_field="type", tag="input_json_delta"):
    """More of the JSON text of a tool's input."""

    partial_json: str


class ContentBlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """A block grows."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class StopDelta(Struct):
    """How the message ended."""

    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: None = None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """How the message ended, and its whole usage."""

    delta: StopDelta
    usage: MessageUsage


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """The last event."""


EVENTS: Final[dict[str, type[Struct]]] = {
    str(event.__struct_config__.tag): event
    for event in (
        MessageStart, Ping, ContentBlockStart, ContentBlockDelta, ContentBlockStop, MessageDelta,
        MessageStop, ErrorEvent,
    )
}  # fmt: skip


class MessageStream(StreamTranslator[GenerateResponse]):
    """The events of one message, which has one source. It is the writer of its own blocks."""

    def __init__(self, options: MessageOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._blocks = Blocks(self)
        self._usage = Usage()
        # The beginning of each delta event of the open block, up to its text.
        self._head = b""
        # The same while a block of text is open; else b"".
        self._text_head = b""

    def source(self, _number: int) -> MessageStream:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        admitted = admission(part)
        if admitted is not None:
            self._usage.prompt_tokens = admitted.prompt_tokens
        return admitted

    def opening(self) -> bytes:
        message = MessageObject(
            id=self._identity.completion_id,
            model=self._options.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=message_usage(Usage(prompt_tokens=self._usage.prompt_tokens)),
        )
        return _event(MessageStart(message)) + _PING

    def text(self, text: str) -> bytes:
        if head := self._text_head:
            return b"".join((head, encode(text), _DELTA_TAIL))
        return self._blocks.text(text)

    def part(self, part: GenerateResponse) -> bytes:
        if part.HasField("usage"):
            self._usage = part.usage
        return self._blocks.part(part)

    def opened(self, block: Block) -> bytes:
        self._head = _DELTA % (block.index, *_DELTAS[block.kind])
        content: Content
        if block.kind is Kind.TEXT:
            self._text_head = self._head
            content = TextContent("")
        elif block.kind is Kind.REASONING:
            content = ThinkingContent("", "")
        else:
            content = ToolUseContent(block.call_id, block.name, _NO_INPUT)
        return _event(ContentBlockStart(block.index, content))

    def grown(self, _block: Block, text: str, _logprobs: Logprobs | None) -> bytes:
        return b"".join((self._head, encode(text), _DELTA_TAIL)) if text else b""

    def closed(self, block: Block) -> bytes:
        self._text_head = b""
        stop = _event(ContentBlockStop(block.index))
        if block.kind is Kind.REASONING:
            return _event(ContentBlockDelta(block.index, SignatureDelta(""))) + stop
        return stop

    def closing(self) -> bytes:
        """The end of the message.

        Raises:
            OpenAIError: 500, it has not ended.
        """
        reason, sequence = stopping(self._blocks, self._usage, self._options.max_tokens)
        delta = StopDelta(reason, sequence)
        return _event(MessageDelta(delta, message_usage(self._usage))) + _STOP

    def failed(self, error: OpenAIError) -> bytes:
        return _event(ErrorEvent(error_object(error)))


def _event(event: Any) -> bytes:
    name = str(event.__struct_config__.tag).encode()
    return b"event: %b\ndata: %b\n\n" % (name, encode(event))
