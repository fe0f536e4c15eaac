"""Parameters of POST /v1/chat/completions.

The docstrings are the descriptions in /openapi.json. Classes that derive from NotOffered are in
OpenAI's API but not in this one: they are decoded only to be refused with a precise error.
message_schema.py has the types of messages.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_LOGPROBS, MAX_TOOLS, ReasoningEffort
from edge.openai.chat.message_schema import Messages
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    ABSENT,
    AnyJson,
    MessageText,
    Name,
    NotOffered,
    NullableObject,
    PositiveCount,
    Strict,
    accepting,
)
from edge.openai.text.schema import GenerationRequest


class FunctionCall(Strict):
    """A function and the JSON text of its arguments."""

    name: str
    arguments: str


# Parameters of other vendors: caching, display, and streaming of a tool's arguments.
_advice: Final = accepting(
    "cache_control", "eager_input_streaming", "annotations", "title", "icons", "_meta"
)


# A parameter of vLLM.
@refuse(defer_loading=[b"false"])
@_advice
class Function(Refusing):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: NullableObject = ABSENT
    strict: bool | None = None


@refuse(defer_loading=[b"false"])
@_advice
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

    ttl: Literal["30m"] | None = None
    mode: Literal["implicit", "explicit"] | None = None


Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]
_Tools = Meta(max_length=MAX_TOOLS)
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
    # Truncation could cut off the special tokens of the chat template.
    truncate_prompt_tokens=[],
    # Has no effect without truncate_prompt_tokens.
    truncation_side=[b'"left"', b'"right"'],
    return_prompt_text=[b"false"],
    mm_processor_kwargs=[b"{}"],
    media_io_kwargs=[b"{}"],
)
class ChatRequest(GenerationRequest, kw_only=True):
    """The body of a chat completion request."""

    messages: MessageText | Messages
    max_completion_tokens: PositiveCount | None = None
    max_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], _Tools] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], _Tools] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    reasoning_effort: ReasoningEffort | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None

    # Accepted without effect.
    verbosity: Literal["low", "medium", "high"] | None = None
    store: bool | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    # It chooses the replica, and nothing else.
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(max_length=2)] | None = None

    # Additional parameters of vLLM's API.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: NullableObject = ABSENT
