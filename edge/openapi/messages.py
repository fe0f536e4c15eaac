"""The Messages API in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from edge.anthropic.errors import AnthropicErrorBody
from edge.anthropic.response import MessageObject, TokenCount
from edge.anthropic.schema import CountTokensRequest, MessagesRequest
from edge.anthropic.stream import EVENTS
from edge.openapi.components import RATE_LIMITS
from edge.openapi.operation import CITY, Operation
from edge.openapi.parameters import without_effect

_BODY: Final[dict[str, Any]] = {
    "model": "claude-2",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}

_MESSAGES: Final = Operation(
    path="/v1/messages",
    id="createMessage",
    tag="Inference",
    summary="Messages",
    description="Anthropic's Messages API: generates the next turn of a conversation, as one "
    "document or a stream. Failures have Anthropic's error object. The key may come as "
    "`x-api-key`.",
    request=MessagesRequest,
    examples={
        "plain": _BODY,
        "streamed": {**_BODY, "stream": True},
        "structured": {
            **_BODY,
            "output_config": {"format": {"type": "json_schema", "schema": CITY}},
        },
        "tools": {
            **_BODY,
            "tools": [{"name": "find", "description": "Finds a city.", "input_schema": CITY}],
            "tool_choice": {"type": "any"},
        },
    },
    success="The turn, or a stream of it.",
    content={"application/json": MessageObject},
    events=EVENTS,
    headers=("request-id", *RATE_LIMITS),
    error=AnthropicErrorBody,
)

_COUNT: Final = Operation(
    path="/v1/messages/count_tokens",
    id="countMessageTokens",
    tag="Inference",
    summary="Tokens of Messages",
    description="Counts the tokens of the prompt that the same request has on `/v1/messages`. "
    "Failures have Anthropic's error object.",
    request=CountTokensRequest,
    examples={"plain": {name: _BODY[name] for name in ("model", "messages")}},
    success="The number.",
    content={"application/json": TokenCount},
    headers=("request-id",),
    error=AnthropicErrorBody,
)
OPERATIONS: Final = (_MESSAGES, _COUNT)

_PROMPT: Final = {
    "model": "An id or alias of `GET /v1/models`; the answer repeats it.",
    "messages": "The conversation. Each `tool_use` has its `tool_result` in the next turn. A "
    "last turn of the assistant is continued.",
    "system": "Instructions. Claude Code's billing line is left out.",
    "tools": "Tools that the model may use. Those that Anthropic's servers run are left out.",
    "tool_choice": "`auto` (default), `any`, `tool` or `none`. Needs `tools`.",
    "thinking": "How long a reasoning model thinks, if its chat template can say so; a budget "
    "is below `max_tokens`.",
    "output_config": "The effort of a reasoning model, and a JSON Schema for the text.",
    "output_format": "The name before `output_config.format`.",
    **without_effect(
        "cache_control", "context_management", "speed", "user_profile_id", "workspace_id"
    ),
}
# Descriptions by schema name and parameter name, in the form that parameters.py has.
DESCRIPTIONS: Final = {
    "CountTokensRequest": _PROMPT,
    "MessagesRequest": {
        **_PROMPT,
        "max_tokens": "At most this many tokens, thinking included; lowered to what the context "
        "leaves.",
        "stream": "Answers with server-sent events.",
        "stop_sequences": "The text ends before the first of these.",
        "temperature": "0 always takes the likeliest token. Default: 1.",
        "top_p": "Samples among the likeliest tokens whose probabilities sum to this. Default: 1.",
        "top_k": "Samples among this many likeliest tokens; 0 means all.",
        **without_effect(
            "service_tier",
            "metadata",
            "diagnostics",
            "inference_geo",
            "fallbacks",
            "fallback_credit_token",
            "billing_policy",
        ),
    },
    "ToolParam": {
        "type": "`custom`, or a tool that Anthropic's servers run, which is left out.",
        "name": "Required unless Anthropic's servers run the tool.",
        "input_schema": "A JSON Schema of type object. Required as `name` is.",
        "strict": "The input fits the schema.",
        "defer_loading": "Hides the tool until a turn names it.",
    },
    "ThinkingEnabled": {
        "budget_tokens": "Below 5,000 is a low effort, below 10,000 a medium one, else a high one.",
        "display": "`omitted` leaves the thinking out of the answer.",
    },
    "SystemTurn": {
        "clear_at": "`next_user_message` leaves the turn out once a user turn follows it.",
    },
}
