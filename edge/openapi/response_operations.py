"""The operations of /v1/responses in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from edge.openai.responses.output_schema import InputTokens, Response
from edge.openai.responses.schema import InputTokensRequest, ResponsesRequest
from edge.openai.responses.stored import DeletedResponse, ItemList
from edge.openapi.operation import CITY, Operation
from edge.openapi.response_events import RESPONSE_EVENTS

_RESPONSE: Final = {
    "model": "gpt-4",
    "input": "What is the capital of France?",
    "temperature": 0,
    "max_output_tokens": 20,
}
_KEPT: Final = (
    "Responses are kept only where the operator has chosen so, for a limited time, and if their "
    "request has `store: true`."
)
_EXAMPLES: Final[dict[str, Any]] = {
    "plain": _RESPONSE,
    "streamed": {**_RESPONSE, "stream": True},
    "structured": {
        **_RESPONSE,
        "text": {
            "format": {"type": "json_schema", "name": "capital", "strict": True, "schema": CITY}
        },
    },
    "tools": {
        **_RESPONSE,
        "tools": [{"type": "function", "name": "find", "parameters": CITY}],
        "tool_choice": "required",
    },
}

RESPONSE_OPERATIONS: Final = (
    Operation(
        path="/v1/responses",
        id="createResponse",
        tag="Inference",
        summary="Response",
        description=f"Generates the next items of a conversation, as one document or a stream. "
        f"{_KEPT}",
        request=ResponsesRequest,
        examples=_EXAMPLES,
        success="The response, or a stream of its parts.",
        content={"application/json": Response},
        events=RESPONSE_EVENTS,
        done=True,
    ),
    Operation(
        path="/v1/responses/input_tokens",
        id="countResponseTokens",
        tag="Inference",
        summary="Tokens of a response's input",
        description="Counts the `input_tokens` that the usage of the same request would have.",
        request=InputTokensRequest,
        examples={"plain": _RESPONSE},
        success="The number.",
        content={"application/json": InputTokens},
    ),
    Operation(
        path="/v1/responses/{id}",
        id="getResponse",
        tag="Inference",
        summary="A kept response",
        description=_KEPT,
        parameters=("response-id",),
        refusable=True,
        success="The response.",
        content={"application/json": Response},
    ),
    Operation(
        path="/v1/responses/{id}",
        id="deleteResponse",
        method="delete",
        tag="Inference",
        summary="Delete a kept response",
        description="It is no longer kept. Responses that continue it are not affected.",
        parameters=("response-id",),
        success="It is deleted.",
        content={"application/json": DeletedResponse},
    ),
    Operation(
        path="/v1/responses/{id}/input_items",
        id="listInputItems",
        tag="Inference",
        summary="The input of a kept response",
        description="Lists the items of the input, with those of the responses that it continues.",
        parameters=("response-id", "limit", "order", "after"),
        refusable=True,
        success="A page of items.",
        content={"application/json": ItemList},
    ),
)
