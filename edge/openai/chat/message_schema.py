"""The messages of a chat completion request.

The docstrings are the descriptions in /openapi.json. Classes that derive from NotOffered are in
OpenAI's API but not in this one: they are decoded only to be refused with a precise error.

Beside OpenAI's members, messages and what they hold have two more kinds:

* advice: members with which other vendors say how to cache or show an object, and what servers
  add to their own messages, which clients send back. They are accepted without effect.
* nothing: members that only messages of another role have. Clients that write all messages with
  one type send them as null or empty; any other value is an unknown parameter.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from edge.openai.decoding.types import (
    ABSENT,
    AnyJson,
    NotOffered,
    Strict,
    accepting,
)

_PART: Final = (
    "cache_control", "prompt_cache_breakpoint", "annotations", "citations", "_meta", "meta",
)  # fmt: skip
_MESSAGE: Final = (
    "cache_control", "copilot_cache_control", "provider_specific_fields", "extra_content",
)  # fmt: skip
_CALL: Final = ("cache_control", "provider_specific_fields", "extra_content", "index")
_RESPONSE: Final = (
    "annotations", "citations", "context", "executed_tools", "parsed", "reasoning_details",
    "thinking_blocks",
)  # fmt: skip
# Members of a model's messages, and of tools' results.
_MODEL: Final = (
    "tool_calls", "function_call", "refusal", "reasoning", "reasoning_content", "audio",
    "annotations",
)  # fmt: skip
_RESULT: Final = ("tool_call_id",)


@accepting(*_PART)
class TextPart(Strict, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


# msgspec requires a tag only in a union. This type stands alone, so `type` is a normal parameter.
@accepting(*_PART)
class OnlyTextPart(Strict):
    """A piece of text, in messages whose parts can only be text."""

    type: Literal["text"]
    text: str


@accepting(*_PART)
class RefusalPart(Strict, tag_field="type", tag="refusal"):
    """A text in which the assistant declined to answer."""

    refusal: str


class ImageUrl(Strict):
    """The URL of an image, which must be a data: URL."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


@accepting(*_PART)
class ImagePart(Strict, tag_field="type", tag="image_url"):
    """An image."""

    image_url: ImageUrl


@accepting(*_PART)
class AudioPart(NotOffered, tag_field="type", tag="input_audio"):
    """Audio; not offered."""

    input_audio: AnyJson


@accepting(*_PART)
class FilePart(NotOffered, tag_field="type", tag="file"):
    """A file; not offered."""

    file: AnyJson


_Parts = Meta(min_length=1, max_length=MAX_PARTS)
TextParts = Annotated[list[OnlyTextPart], _Parts]
UserPart = TextPart | ImagePart | AudioPart | FilePart
AnyPart = UserPart | OnlyTextPart | RefusalPart


@accepting("provider_specific_fields", "parsed_arguments")
class PastFunctionCall(Strict):
    """A function call in the conversation so far; SDKs add `parsed_arguments`."""

    name: str
    arguments: str


@accepting(*_CALL)
class FunctionToolCall(Strict, tag_field="type", tag="function"):
    """A tool call of the assistant in the conversation so far."""

    id: str
    function: PastFunctionCall


@accepting(*_CALL)
class CustomToolCall(NotOffered, tag_field="type", tag="custom"):
    """A call of a custom tool; not offered."""

    id: str
    custom: AnyJson


# `content` is nullable in the types so that null gets OpenAI's own error (messages.py raises it).
@accepting(*_MESSAGE, nothing=(*_MODEL, *_RESULT))
class SystemMessage(Strict, tag_field="role", tag="system"):
    """Instructions from the operator."""

    content: str | TextParts | None
    name: str | None = None


@accepting(*_MESSAGE, nothing=(*_MODEL, *_RESULT))
class DeveloperMessage(Strict, tag_field="role", tag="developer"):
    """Instructions from the application."""

    content: str | TextParts | None
    name: str | None = None


@accepting(*_MESSAGE, nothing=(*_MODEL, *_RESULT))
class UserMessage(Strict, tag_field="role", tag="user"):
    """A message of the user."""

    content: str | Annotated[list[UserPart], _Parts] | None
    name: str | None = None


@accepting(*_MESSAGE, *_RESPONSE, nothing=("images", *_RESULT))
class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    """An earlier message of the model.

    A response's message can be sent back unchanged: all of its properties are accepted, also if
    they are null, and so is `parsed`, which SDKs add.
    """

    content: str | Annotated[list[TextPart | RefusalPart], Meta(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: AnyJson = ABSENT
    tool_calls: (
        Annotated[list[FunctionToolCall | CustomToolCall], Meta(max_length=MAX_TOOLS)] | None
    ) = None
    function_call: PastFunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


@accepting(*_MESSAGE, nothing=_MODEL)
class ToolMessage(Strict, tag_field="role", tag="tool"):
    """The result of a tool call."""

    content: str | TextParts | None
    tool_call_id: str
    name: str | None = None


@accepting(*_MESSAGE, nothing=(*_MODEL, *_RESULT))
class FunctionMessage(Strict, tag_field="role", tag="function"):
    """The result of a function call, in the legacy form."""

    content: str | None
    name: str


Message = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
