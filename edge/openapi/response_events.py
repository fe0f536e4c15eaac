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


class _Event(Struct, kw_only=True):
    type: str
    sequence_number: int


class _OfItem(_Event, kw_only=True):
    item_id: str
    output_index: int


class _OfContent(_OfItem, kw_only=True):
    content_index: int


class ResponseEvent(_Event, kw_only=True):
    """The response has been made, is in progress, or has ended."""

    response: Response


class ItemEvent(_Event, kw_only=True):
    """An item of the output begins or is complete."""

    output_index: int
    item: OutputItem


class PartEvent(_OfContent, kw_only=True):
    """The content of an item begins or is complete."""

    part: OutputText | OutputReasoningText


class TextDeltaEvent(_OfContent, kw_only=True):
    """A piece of the text."""

    type: str = "response.output_text.delta"
    delta: str
    logprobs: list[ChatLogprob]


class TextDoneEvent(_OfContent, kw_only=True):
    """The whole text of a message."""

    type: str = "response.output_text.done"
    text: str
    logprobs: list[ChatLogprob]


class ReasoningDeltaEvent(_OfContent, kw_only=True):
    """A piece of the reasoning."""

    type: str = "response.reasoning_text.delta"
    delta: str


class ReasoningDoneEvent(_OfContent, kw_only=True):
    """The whole text of a reasoning item."""

    type: str = "response.reasoning_text.done"
    text: str


class CallDeltaEvent(_OfItem, kw_only=True):
    """A piece of a call's arguments, or of a custom tool's input."""

    delta: str


class ArgumentsDoneEvent(_OfItem, kw_only=True):
    """The arguments of a function call."""

    type: str = "response.function_call_arguments.done"
    arguments: str


class InputDoneEvent(_OfItem, kw_only=True):
    """The input of a custom tool's call."""

    type: str = "response.custom_tool_call_input.done"
    input: str


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
