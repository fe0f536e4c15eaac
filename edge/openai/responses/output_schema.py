"""The response object and its output items.

The docstrings are the descriptions in /openapi.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from contract.limits import ReasoningEffort
from edge.openai.responses.schema import TextConfig
from edge.openai.responses.tool_schema import OfferedTool, ResponseToolChoice
from edge.openai.text.logprobs import ChatLogprob

ItemState = Annotated[
    str, Meta(extra_json_schema={"enum": ["in_progress", "completed", "incomplete"]})
]
ResponseStatus = Annotated[
    str, Meta(extra_json_schema={"enum": ["in_progress", "completed", "incomplete", "failed"]})
]


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[str] = []
    logprobs: list[ChatLogprob] = []


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemState
    role: str = "assistant"
    content: list[OutputText]


class OutputReasoningText(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """The text of a reasoning item."""

    text: str


class OutputReasoning(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What a reasoning model thought. It is never summarised or encrypted."""

    id: str
    status: ItemState
    summary: list[str] = []
    content: list[OutputReasoningText]
    encrypted_content: None = None


class OutputFunctionCall(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: ItemState
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


class OutputCustomCall(Struct, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool."""

    id: str
    status: ItemState
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    input: str


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall | OutputCustomCall


IncompleteReason = Literal["max_output_tokens", "content_filter"]


class IncompleteDetails(Struct):
    """Why a response is incomplete."""

    reason: IncompleteReason


class ResponseFailure(Struct):
    """Why a response failed."""

    code: str
    message: str


class ReasoningOptions(Struct):
    """The request's `reasoning`."""

    effort: ReasoningEffort | None
    summary: str | None


class InputTokensDetails(Struct):
    """Details of input_tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """Details of output_tokens."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    """The tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(Struct, kw_only=True):
    """A response. It repeats the parameters of its request."""

    id: str
    object: str = "response"
    created_at: int
    status: ResponseStatus
    background: bool = False
    completed_at: int | None
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Mapping[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool = False
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    text: TextConfig
    tool_choice: ResponseToolChoice
    tools: Sequence[OfferedTool]
    top_logprobs: int
    truncation: str = "disabled"
    usage: ResponseUsage | None
    user: str | None


class InputTokens(Struct):
    """The tokens of a request's prompt."""

    input_tokens: int
    object: str = "response.input_tokens"
