"""Anthropic's form of errors: `{"type":"error","error":{"type","message"},"request_id"}`.

Statuses and headers about retries are those of the OpenAI faces: an overloaded edge is 503 and
not Anthropic's 529, which proxies do not know.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edge.openai.errors import OpenAIError

_MESSAGES: Final = "/v1/messages"
# Its clients send the header and read the same paths as OpenAI's.
_MODELS: Final = "/v1/models"
_VERSION: Final = "anthropic-version"
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OTHER: Final = "api_error"
_ErrorType = Annotated[
    str, Meta(extra_json_schema={"enum": [*dict.fromkeys(_TYPES.values()), _OTHER]})
]


class ErrorDetails(Struct):
    """Makes Anthropic's SDKs send the whole conversation instead of what is new of a thread."""

    error_code: str = "thread_unsupported_request"


class AnthropicError(Struct):
    """The error; its message names the parameter at fault."""

    type: _ErrorType
    message: str
    details: ErrorDetails | UnsetType = UNSET


class ErrorEvent(Struct, tag_field="type", tag="error"):
    """The last event of a stream that fails after its 200."""

    error: AnthropicError


class AnthropicErrorBody(ErrorEvent, tag_field="type", tag="error"):
    """The body of every answer of the Messages API that is not a success."""

    request_id: str


def is_anthropic(path: str, headers: Container[str]) -> bool:
    """Whether a response has Anthropic's form: on its own paths, and where a client asks for it.

    Args:
        path: The request's path.
        headers: The names of its headers.
    """
    if _at_or_below(path, _MESSAGES):
        return True
    return _at_or_below(path, _MODELS) and _VERSION in headers


def _at_or_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + "/")


def error_object(error: OpenAIError) -> AnthropicError:
    """The error as an object."""
    message = error.message
    if error.code == "context_length_exceeded":
        # Claude Code compacts a conversation if it finds these words.
        message = f"prompt is too long: {message}"
    elif error.param and error.param not in message:
        message = f"{error.param}: {message}"
    details = ErrorDetails() if error.param == "thread" else UNSET
    return AnthropicError(_TYPES.get(error.status, _OTHER), message, details)


def error_body(error: OpenAIError, request_id: str) -> bytes:
    """The JSON of an AnthropicErrorBody."""
    return msgspec.json.encode(AnthropicErrorBody(error_object(error), request_id))
