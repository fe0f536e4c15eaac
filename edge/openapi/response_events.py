"""Types of the events of a streamed response for the OpenAPI document.

The events are rendered in edge/openai/responses/stream.py.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from edge.openai.responses.output_schema import (
    OutputItem,
    OutputReasoningText,
    OutputText,
    Response,
)
from edge.openai.text.logprobs import ChatLogprob


class ResponseEvent(Struct, kw_only=True):
    """The response has been made, is in progress, or has ended."""

    type: str
    response: Response
    sequence_number: int


class ItemEvent(Struct, kw_only=True):
    """An item of the output begins or is complete."""

    type: str
    output_index: int
    item: OutputItem
    sequence_number: int


class PartEvent(Struct, kw_only=True):
    """The content of an item begins or is complete."""

    type: str
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | OutputReasoningText
    sequence_number: int


class TextDeltaEvent(Struct, kw_only=True):
    """A piece of the text."""

    type: str = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[ChatLogprob]
    sequence_number: int


class TextDoneEvent(Struct, kw_only=True):
    """The whole text of a message."""

    type: str = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[ChatLogprob]
    sequence_number: int


class ReasoningDeltaEvent(Struct, kw_only=True):
    """A piece of the reasoning."""

    type: str = "response.reasoning_text.delta"
    item_id: str
    output_index: int
    content_index: int
    delta: str
    sequence_number: int


class ReasoningDoneEvent(Struct, kw_only=True):
    """The whole text of a reasoning item."""

    type: str = "response.reasoning_text.done"
    item_id: str
    output_index: int
    content_index: int
    text: str
    sequence_number: int


class CallDeltaEvent(Struct, kw_only=True):
    """A piece of a call's arguments, or of a custom tool's input."""

    type: str
    item_id: str
    output_index: int
    delta: str
    sequence_number: int


class ArgumentsDoneEvent(Struct, kw_only=True):
    """The arguments of a function call."""

    type: str = "response.function_call_arguments.done"
    item_id: str
    output_index: int
    arguments: str
    sequence_number: int


class InputDoneEvent(Struct, kw_only=True):
    """The input of a custom tool's call."""

    type: str = "response.custom_tool_call_input.done"
    item_id: str
    output_index: int
    input: str
    sequence_number: int


RESPONSE_EVENTS: Final[dict[str, type[Struct]]] = {
    "response.created": ResponseEvent,
    "response.in_progress": ResponseEvent,
    "response.output_item.added": ItemEvent,
    "response.content_part.added": PartEvent,
    "response.reasoning_text.delta": ReasoningDeltaEvent,
    "response.reasoning_text.done": ReasoningDoneEvent,
    "response.output_text.delta": TextDeltaEvent,
    "response.output_text.done": TextDoneEvent,
    "response.content_part.done": PartEvent,
    "response.function_call_arguments.delta": CallDeltaEvent,
    "response.function_call_arguments.done": ArgumentsDoneEvent,
    "response.custom_tool_call_input.delta": CallDeltaEvent,
    "response.custom_tool_call_input.done": InputDoneEvent,
    "response.output_item.done": ItemEvent,
    "response.completed": ResponseEvent,
    "response.incomplete": ResponseEvent,
    "response.failed": ResponseEvent,
}
