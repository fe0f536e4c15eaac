"""Parameters of POST /v1/chat/completions.

The docstrings are the descriptions in /openapi.json. Classes that derive from NotOffered are in
OpenAI's API but not in this one: they are decoded only to be refused with a precise error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from contract.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_PARTS, MAX_TOOLS, ReasoningEffort
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    ABSENT,
    AnyJson,
    Name,
    NotOffered,
    NullableObject,
    PositiveCount,
    Strict,
    Text,
)
from edge.openai.text.schema import GenerationRequest


class TextPart(Strict, tag_field="type", tag="text"):
    """A piece of text."""

    text: str
    prompt_cache_breakpoint: AnyJson = ABSENT


# msgspec requires a tag only in a union. This type stands alone, so `type` is a normal parameter.
class OnlyTextPart(Strict):
    """A piece of text, in messages whose parts can only be text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: AnyJson = ABSENT


class RefusalPart(Strict, tag_field="type", tag="refusal"):
    """A text in which the assistant declined to answer."""

    refusal: str


class ImageUrl(Strict):
    """The URL of an image, which must be a data: URL."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | UnsetType = UNSET


class ImagePart(Strict, tag_field="type", tag="image_url"):
    """An image."""

    image_url: ImageUrl
    prompt_cache_breakpoint: AnyJson = ABSENT


class AudioPart(NotOffered, tag_field="type", tag="input_audio"):
    """Audio; not offered."""

    input_audio: AnyJson
    prompt_cache_breakpoint: AnyJson = ABSENT


class FilePart(NotOffered, tag_field="type", tag="file"):
    """A file; not offered."""

    file: AnyJson
    prompt_cache_breakpoint: AnyJson = ABSENT


_Parts = Meta(min_length=1, max_length=MAX_PARTS)
TextParts = Annotated[list[OnlyTextPart], _Parts]
UserPart = TextPart | ImagePart | AudioPart | FilePart
AnyPart = UserPart | OnlyTextPart | RefusalPart


class FunctionCall(Strict):
    """A function and the JSON text of its arguments."""

    name: str
    arguments: str


class PastFunctionCall(FunctionCall):
    """A function call in the conversation so far; SDKs add `parsed_arguments`."""

    parsed_arguments: AnyJson = ABSENT


class FunctionToolCall(Strict, tag_field="type", tag="function"):
    """A tool call of the assistant in the conversation so far."""

    id: str
    function: PastFunctionCall
    # Ignored; clients that concatenate the deltas of a stream send it.
    index: int | None = None


class CustomToolCall(NotOffered, tag_field="type", tag="custom"):
    """A call of a custom tool; not offered."""

    id: str
    custom: AnyJson


# `content` is nullable in the types so that null gets OpenAI's own error (messages.py raises it).
class SystemMessage(Strict, tag_field="role", tag="system"):
    """Instructions from the operator."""

    content: str | TextParts | None
    name: str | None = None


class DeveloperMessage(Strict, tag_field="role", tag="developer"):
    """Instructions from the application."""

    content: str | TextParts | None
    name: str | None = None


class UserMessage(Strict, tag_field="role", tag="user"):
    """A message of the user."""

    content: str | Annotated[list[UserPart], _Parts] | None
    name: str | None = None


class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    """An earlier message of the model.

    A response's message can be sent back unchanged: all of its properties are accepted, also if
    they are null, and so is `parsed`, which SDKs add.
    """

    content: str | Annotated[list[TextPart | RefusalPart], _Parts] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: AnyJson = ABSENT
    annotations: AnyJson = ABSENT
    parsed: AnyJson = ABSENT
    tool_calls: (
        Annotated[list[FunctionToolCall | CustomToolCall], Meta(max_length=MAX_TOOLS)] | None
    ) = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ToolMessage(Strict, tag_field="role", tag="tool"):
    """The result of a tool call."""

    content: str | TextParts | None
    tool_call_id: str
    name: str | None = None


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


# A parameter of vLLM.
@refuse(defer_loading=[b"false"])
class Function(Refusing):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: NullableObject = ABSENT
    strict: bool | None = None


@refuse(defer_loading=[b"false"])
class FunctionTool(Refusing, tag_field="type", tag="function"):
    """A function as a tool."""

    function: Function


class CustomTool(NotOffered, tag_field="type", tag="custom"):
    """A tool with free-form input; not offered."""

    custom: AnyJson


class FunctionName(Strict):
    """The name of a function."""

    name: str


class NamedFunction(Strict, tag_field="type", tag="function"):
    """A function that the model must call."""

    function: FunctionName


class AllowedFunction(Strict):
    """A function that the model may call, one of `tools`."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    """The tools that the model may call, or must call if the mode is `required`."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedFunction], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Strict, tag_field="type", tag="allowed_tools"):
    """Allows only some of `tools`."""

    allowed_tools: AllowedTools


class NamedCustom(NotOffered, tag_field="type", tag="custom"):
    """A custom tool that the model must call; not offered."""

    custom: AnyJson


ToolChoice = Literal["none", "auto", "required"] | NamedFunction | AllowedToolsChoice | NamedCustom


class PromptCacheOptions(Strict):
    """Accepted without effect: prefixes are cached as the engine decides."""

    ttl: Literal["30m"] | UnsetType = UNSET
    mode: Literal["implicit", "explicit"] | UnsetType = UNSET


Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]
_Tools = Meta(min_length=1, max_length=MAX_TOOLS)
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


# Additional parameters that are not offered.
@refuse(
    audio=[],
    prediction=[],
    web_search_options=[],
    moderation=[],
    chat_template=[],
    documents=[b"[]"],
    add_special_tokens=[b"false"],
    # A cut would go through the template's marks.
    truncate_prompt_tokens=[],
    # Has no effect without truncate_prompt_tokens.
    truncation_side=[b'"left"', b'"right"'],
    return_prompt_text=[b"false"],
    mm_processor_kwargs=[],
    media_io_kwargs=[],
)
class ChatRequest(GenerationRequest, kw_only=True):
    """The body of a chat completion request."""

    messages: Text | Messages
    max_completion_tokens: PositiveCount | None = None
    max_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], _Tools] | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    functions: Annotated[list[Function], _Tools] | UnsetType = UNSET
    function_call: Literal["none", "auto"] | FunctionName | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None

    # Accepted without effect.
    verbosity: Literal["low", "medium", "high"] | None = None
    store: bool | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | UnsetType = UNSET
    modalities: Annotated[list[Literal["text", "audio"]], Meta(max_length=2)] | None = None

    # Additional parameters of vLLM's API.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: NullableObject = ABSENT
