"""Members of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, UnsetType

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

MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 1024
# Of all messages together, with the tool calls in them.
MAX_ALL_PARTS: Final = 4096
MAX_TOOLS: Final = 128


class TextPart(Strict, tag_field="type", tag="text"):
    """A piece of text."""

    text: str
    prompt_cache_breakpoint: AnyJson = ABSENT


# A tag is not missed where there is nothing to choose; a member is.
class OnlyTextPart(Strict):
    """A piece of text, where nothing else is allowed."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: AnyJson = ABSENT


class RefusalPart(Strict, tag_field="type", tag="refusal"):
    """A text in which the assistant declined to answer."""

    refusal: str


class ImageUrl(Strict):
    """Where a picture is; only data: URLs are read."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | UnsetType = UNSET


class ImagePart(Strict, tag_field="type", tag="image_url"):
    """A picture."""

    image_url: ImageUrl
    prompt_cache_breakpoint: AnyJson = ABSENT


class AudioPart(NotOffered, tag_field="type", tag="input_audio"):
    """A sound; known, not offered."""

    input_audio: AnyJson
    prompt_cache_breakpoint: AnyJson = ABSENT


class FilePart(NotOffered, tag_field="type", tag="file"):
    """A file; known, not offered."""

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
    """The same as a client has it in its history, with what its SDK made of the arguments."""

    parsed_arguments: AnyJson = ABSENT


class FunctionToolCall(Strict, tag_field="type", tag="function"):
    """A call that the assistant made."""

    id: str
    function: PastFunctionCall
    # Left over where a client put the deltas of a stream together.
    index: int | None = None


class CustomToolCall(NotOffered, tag_field="type", tag="custom"):
    """A call of a custom tool; known, not offered."""

    id: str
    custom: AnyJson


# `content` is nullable in the types so that null gets the words that OpenAI has for it.
class SystemMessage(Strict, tag_field="role", tag="system"):
    """Instructions from the operator."""

    content: str | TextParts | None
    name: str | None = None


class DeveloperMessage(Strict, tag_field="role", tag="developer"):
    """Instructions from the application."""

    content: str | TextParts | None
    name: str | None = None


class UserMessage(Strict, tag_field="role", tag="user"):
    """What the person says."""

    content: str | Annotated[list[UserPart], _Parts] | None
    name: str | None = None


class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    """What the model said; every member of an answer may come back as it was, nulls included.

    So may what the SDKs add to it: `parsed`, the answer as an object.
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
    """The result of a call."""

    content: str | TextParts | None
    tool_call_id: str
    name: str | None = None


class FunctionMessage(Strict, tag_field="role", tag="function"):
    """The result of a call, in the form before tools."""

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


class Function(Strict):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: NullableObject = ABSENT
    strict: bool | None = None
    # vLLM's; refused by name.
    defer_loading: AnyJson = ABSENT


class FunctionTool(Strict, tag_field="type", tag="function"):
    """A function as a tool."""

    function: Function
    # vLLM's; refused by name.
    defer_loading: AnyJson = ABSENT


class CustomTool(NotOffered, tag_field="type", tag="custom"):
    """A tool with free input; known, not offered."""

    custom: AnyJson


class FunctionName(Strict):
    """Names a function."""

    name: str


class NamedFunction(Strict, tag_field="type", tag="function"):
    """Chooses one function."""

    function: FunctionName


class AllowedFunction(Strict):
    """Allows one function."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    """The tools that may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedFunction], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Strict, tag_field="type", tag="allowed_tools"):
    """Narrows the choice to some tools."""

    allowed_tools: AllowedTools


class NamedCustom(NotOffered, tag_field="type", tag="custom"):
    """Chooses a custom tool; known, not offered."""

    custom: AnyJson


ToolChoice = Literal["none", "auto", "required"] | NamedFunction | AllowedToolsChoice | NamedCustom


class PromptCacheOptions(Strict):
    """Advice without effect here."""

    ttl: Literal["30m"] | UnsetType = UNSET
    mode: Literal["implicit", "explicit"] | UnsetType = UNSET


Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]
_Tools = Meta(min_length=1, max_length=MAX_TOOLS)
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(GenerationRequest, kw_only=True):
    """The body; text in `messages` is JSON of the list, or one user message."""

    messages: Text | Messages
    max_completion_tokens: PositiveCount | None = None
    max_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], _Tools] | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    functions: Annotated[list[Function], _Tools] | UnsetType = UNSET
    function_call: Literal["none", "auto"] | FunctionName | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None

    # Advice without effect.
    verbosity: Literal["low", "medium", "high"] | None = None
    store: bool | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | UnsetType = UNSET
    modalities: Annotated[list[Literal["text", "audio"]], Meta(max_length=2)] | None = None

    # vLLM's documented extras.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: NullableObject = ABSENT

    # Refused by name.
    audio: AnyJson = ABSENT
    prediction: AnyJson = ABSENT
    web_search_options: AnyJson = ABSENT
    moderation: AnyJson = ABSENT
    chat_template: AnyJson = ABSENT
    add_special_tokens: AnyJson = ABSENT
    documents: AnyJson = ABSENT
    echo: AnyJson = ABSENT
    include_reasoning: AnyJson = ABSENT
    return_prompt_text: AnyJson = ABSENT
    mm_processor_kwargs: AnyJson = ABSENT
    media_io_kwargs: AnyJson = ABSENT
