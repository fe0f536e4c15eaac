"""Parameters of POST /v1/responses.

item_schema.py has the types of `input`, tool_schema.py those of `tools` and `tool_choice`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_ENTRIES, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_TOOLS, ReasoningEffort
from edge.openai.chat.schema import Metadata
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    ABSENT,
    INT32_MAX,
    AnyJson,
    AnyObject,
    Name,
    NullableObject,
    PositiveCount,
    Strict,
    Text,
    TokenIdText,
    accepting,
)
from edge.openai.responses.item_schema import InputItems
from edge.openai.responses.tool_schema import OfferedTool, ResponseToolChoice
from edge.openai.text.schema import (
    MAX_STOP_STRINGS,
    JsonObjectFormat,
    StructuredOutputs,
    TextFormat,
    with_parameters,
)

LOGPROBS: Final = "message.output_text.logprobs"
_BIAS: Final = Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)
# Only the first value has an effect: responses never hold what the others would add.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class NamedSchemaFormat(Strict, tag_field="type", tag="json_schema"):
    """JSON that obeys a named schema."""

    name: Name
    schema: AnyObject
    description: str | None = None
    strict: bool | None = None


class TextConfig(Strict):
    """The form of the text."""

    format: TextFormat | JsonObjectFormat | NamedSchemaFormat | None = None
    # Accepted without effect.
    verbosity: Literal["low", "medium", "high"] | None = None


@refuse(mode=[b'"standard"'])
class ReasoningConfig(Refusing):
    """How a reasoning model thinks."""

    effort: ReasoningEffort | None = None
    # Accepted without effect: the reasoning itself is returned, and never a summary.
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    # The chat template decides.
    context: Literal["auto", "current_turn", "all_turns"] | None = None


class ResponseStreamOptions(Strict):
    """Obfuscation is never added."""

    include_obfuscation: bool | None = None


@refuse(prewarm=[b"false"])
@accepting("mode", "ttl", "comparison_response_id")
class ResponseCacheOptions(Refusing):
    """Accepted without effect: prefixes are cached as the engine decides."""


@refuse(
    conversation=[],
    prompt=[],
    background=[b"false"],
    background_options=[],
    access_programs=[],
    context_management=[b"[]"],
    image=[],
    moderation=[],
    # Parameters of vLLM.
    watermarking=[b"false"],
    enable_response_messages=[b"false"],
    previous_input_messages=[b"[]"],
    media_io_kwargs=[b"{}"],
    mm_processor_kwargs=[b"{}"],
    mm_payload=[b'"none"', b'"tensors"'],
    return_mm_kwargs=[b"false"],
    kv_transfer_params=[b"{}"],
    ec_transfer_params=[b"{}"],
    vllm_xargs=[b"{}"],
)
@with_parameters
class ResponsesRequest(Refusing, kw_only=True):
    """The body of a request for a response."""

    model: Text = ""
    input: str | InputItems
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: PositiveCount | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Includable], Meta(max_length=MAX_TOOLS)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    metadata: Metadata | None = None

    # Accepted without effect; the response repeats them.
    max_tool_calls: PositiveCount | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    service_tier: (
        Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None
    ) = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    # It chooses the replica, and nothing else.
    prompt_cache_key: str | None = None
    # Accepted without effect.
    prompt_cache_options: ResponseCacheOptions | None = None
    client_metadata: AnyJson = ABSENT
    # Refused where the edge keeps no responses.
    previous_response_id: str | None = None
    store: bool | None = None

    # Additional parameters of vLLM's API.
    stop: Text | Annotated[list[Text], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    logit_bias: (
        Annotated[dict[TokenIdText, Annotated[float, _BIAS]], Meta(max_length=MAX_ENTRIES)] | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: NullableObject = ABSENT
    include_reasoning: bool | None = None
    priority: Annotated[int, Meta(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None
    session_id: str | None = None
    request_id: str | None = None


@refuse(conversation=[])
class InputTokensRequest(Refusing, kw_only=True):
    """The body of a request for the tokens of a response's input: what decides the prompt."""

    model: Text = ""
    input: str | InputItems
    instructions: str | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    previous_response_id: str | None = None
    chat_template_kwargs: NullableObject = ABSENT
