"""Parameters of POST /v1/messages and POST /v1/messages/count_tokens.

The docstrings are the descriptions in /openapi.json. turn_schema.py has the types of turns.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_TOOLS
from edge.anthropic.turn_schema import TextBlocks, Turns
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    ABSENT,
    INT32_MAX,
    UINT32_MAX,
    AnyObject,
    Name,
    NullableObject,
    PositiveCount,
    Strict,
    Text,
    accepting,
)

# The inference service checks these too.
MAX_STOP_SEQUENCES: Final = 16
# Anthropic's least budget of thinking, in tokens.
_LEAST_BUDGET: Final = 1024
_SHARE: Final = Meta(ge=0, le=1)

# Members of Anthropic's own tools.
_OF_SERVER_TOOLS: Final = (
    "allowed_domains", "blocked_domains", "caching", "citations", "configs", "default_config",
    "display_height_px", "display_number", "display_width_px", "enable_zoom", "max_characters",
    "max_content_tokens", "max_tokens", "max_uses", "mcp_server_name", "model",
    "response_inclusion", "tools", "url_sources", "use_cache", "user_location",
)  # fmt: skip


@accepting(
    "cache_control", "allowed_callers", "eager_input_streaming", "input_examples", *_OF_SERVER_TOOLS
)
class ToolParam(Strict):
    """A tool that the model may use.

    With a `type` other than `custom` it is one of Anthropic's own. Those that Anthropic's servers
    run are left out of the prompt, and those that clients run are refused.
    """

    type: str | None = None
    name: Name | None = None
    description: str | None = None
    input_schema: NullableObject = ABSENT
    strict: bool | None = None
    defer_loading: bool | None = None


class AutoToolChoice(Strict, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyToolChoice(Strict, tag_field="type", tag="any"):
    """The model must use a tool."""

    disable_parallel_tool_use: bool | None = None


class OneToolChoice(Strict, tag_field="type", tag="tool"):
    """The model must use this tool."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoToolChoice(Strict, tag_field="type", tag="none"):
    """The model uses no tool."""


MessagesToolChoice = AutoToolChoice | AnyToolChoice | OneToolChoice | NoToolChoice
_Display = Literal["summarized", "omitted"]


@accepting("block_binding")
class ThinkingEnabled(Strict, tag_field="type", tag="enabled"):
    """The model thinks, for about as long as the budget says."""

    budget_tokens: Annotated[int, Meta(ge=_LEAST_BUDGET, le=UINT32_MAX)]
    display: _Display | None = None


@accepting("block_binding")
class ThinkingAdaptive(Strict, tag_field="type", tag="adaptive"):
    """The model decides how long it thinks."""

    display: _Display | None = None


class ThinkingDisabled(Strict, tag_field="type", tag="disabled"):
    """The model does not think, if its chat template can say so."""


# msgspec requires a tag only in a union. This type stands alone, so `type` is a normal parameter.
class JsonOutputFormat(Strict):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    schema: AnyObject


@accepting("task_budget")
class OutputConfig(Strict):
    """How long the model thinks, and the form of its text."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutputFormat | None = None


# Not offered: without their effect a response would mislead the client.
@refuse(
    container=[],
    mcp_servers=[b"[]"],
    thread=[],
    compaction=[],
)
@accepting(
    "cache_control",
    "context_management",
    "speed",
    "user_profile_id",
    "workspace_id",
)
class CountTokensRequest(Refusing, kw_only=True):
    """The members that decide the prompt."""

    model: Text = ""
    messages: Turns
    system: str | TextBlocks | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    # The name before output_config.format.
    output_format: JsonOutputFormat | None = None


@accepting(
    "metadata",
    "diagnostics",
    "inference_geo",
    "fallbacks",
    "fallback_credit_token",
    "billing_policy",
)
class MessagesRequest(CountTokensRequest, kw_only=True):
    """The body of a Messages request."""

    max_tokens: PositiveCount
    stream: bool | None = None
    stop_sequences: Annotated[list[Text], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: Annotated[float, _SHARE] | None = None
    top_p: Annotated[float, _SHARE] | None = None
    top_k: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    # Accepted without effect.
    service_tier: Literal["auto", "standard_only"] | None = None
