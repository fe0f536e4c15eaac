"""OpenAI's errors: the one exception, and what is said about models, members and our own faults.

Public text is written here or by the inference service, never taken from a foreign exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final

import msgspec
from msgspec import Struct

from contract import refusals
from contract.refusals import Refusal
from contract.refusals import shown as shown
from isthmus.v1.usage_pb2 import RateLimits


class ErrorObject(Struct):
    """What went wrong; `param` is the path of the member at fault, `code` names the fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """The body of every answer that is not a success."""

    error: ErrorObject


class OpenAIError(Exception):
    """A failure as a REST caller sees it.

    Args:
        status: HTTP status.
        message: Public text.
        type: OpenAI's error type.
        code: OpenAI's error code; None is sent as null.
        param: The member at fault, as a path ("messages[0].role").
        retry_after_ms: When a later attempt can help.
        should_retry: Overrides the SDKs' own rule about repeating the request.
        rate_limits: What the caller's key has left, where a limit is the reason; else empty.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_ms: int | None = None,
        should_retry: bool | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.should_retry = should_retry
        self.rate_limits = rate_limits or RateLimits()

    def in_terms_of(self, names: Mapping[str, str]) -> OpenAIError:
        """The same with the member at fault named as the caller wrote it.

        Args:
            names: Each name that the member may have here, with the caller's.
        """
        for name, theirs in names.items():
            if self.param is not None and self.param.startswith(name):
                param = theirs + self.param.removeprefix(name)
                self.message = self.message.replace(self.param, param)
                self.param = param
                break
        return self

    def body(self) -> bytes:
        """The JSON envelope; all four members are always there."""
        error = ErrorObject(self.message, self.type, self.param, self.code)
        return msgspec.json.encode(ErrorBody(error))

    def headers(self) -> dict[str, str]:
        """The response headers that steer retries; empty for most errors."""
        headers = {}
        if self.retry_after_ms is not None:
            # Whole seconds, at least one: some clients read nothing finer.
            headers["retry-after"] = str(max(1, ceil(self.retry_after_ms / 1000)))
            headers["retry-after-ms"] = str(self.retry_after_ms)
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


# Reasons for which OpenAI has no code.
_WITHOUT_CODE: Final = frozenset(
    {"invalid_request_error", "model_not_capable", "embeddings_not_allowed"}
)


def refused(refusal: Refusal, status: int = 400) -> OpenAIError:
    """An error in the words that both sides share."""
    code = None if refusal.reason in _WITHOUT_CODE else refusal.reason
    return OpenAIError(status, refusal.message, code=code, param=refusal.param)


# Models


def missing_model() -> OpenAIError:
    return refused(refusals.missing_model())


def unknown_model(name: str) -> OpenAIError:
    return refused(refusals.unknown_model(name), 404)


def unknown_model_path(name: str) -> OpenAIError:
    """404: no such model, in GET /v1/models/{id}."""
    return OpenAIError(
        404,
        f"The model '{shown(name, 256)}' does not exist",
        code="model_not_found",
        param="model",
    )


def not_a_chat_model() -> OpenAIError:
    return refused(refusals.not_a_chat_model(), 404)


def not_a_completion_model() -> OpenAIError:
    return refused(refusals.not_a_completion_model(), 404)


def not_an_embedding_model() -> OpenAIError:
    return refused(refusals.not_an_embedding_model(), 403)


def not_an_image_model() -> OpenAIError:
    return refused(refusals.not_an_image_model(), 404)


# Our own faults


def internal_error() -> OpenAIError:
    """500: a fault of ours; says nothing about it."""
    return OpenAIError(
        500,
        refusals.INTERNAL_ERROR,
        type="server_error",
    )


def bad_upstream() -> OpenAIError:
    """502: edge and inference service do not understand each other."""
    return OpenAIError(
        502,
        "The inference service could not be used for this request.",
        type="server_error",
        should_retry=False,
    )


def overloaded(retry_after_ms: int = 1000) -> OpenAIError:
    """503: no replica can take the request now."""
    return OpenAIError(
        503,
        refusals.OVERLOADED,
        type="server_error",
        retry_after_ms=retry_after_ms,
    )


def upstream_lost(retry_after_ms: int = 1000) -> OpenAIError:
    """503: the inference service was lost while it answered."""
    return OpenAIError(
        503,
        "The inference service was lost while it answered, please try again",
        type="server_error",
        retry_after_ms=retry_after_ms,
    )


def timed_out() -> OpenAIError:
    """504: the request's time is over; repeating it would only cost the same again."""
    return OpenAIError(
        504,
        "The request took longer than its time limit.",
        type="server_error",
        code="deadline_exceeded",
        should_retry=False,
    )


# The body


def invalid_json() -> OpenAIError:
    """400: the body is not one JSON object by RFC 8259."""
    return OpenAIError(
        400,
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        "using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was "
        "sent was not valid JSON.)",
    )


def invalid_request(message: str, param: str | None, code: str | None = None) -> OpenAIError:
    """400: a rule about members, with the rule's own words."""
    return OpenAIError(400, message, param=param, code=code)


def missing_parameter(param: str) -> OpenAIError:
    return refused(refusals.missing(param))


def unknown_parameter(param: str) -> OpenAIError:
    """400: a member that the schema does not know."""
    return invalid_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def unsupported_parameter(param: str) -> OpenAIError:
    return refused(refusals.unsupported_parameter(param))


def unsupported_value(param: str, explanation: str) -> OpenAIError:
    return refused(refusals.unsupported_value(param, explanation))


def empty_array(param: str) -> OpenAIError:
    return refused(refusals.empty_array(param))


def array_too_long(param: str, limit: int, length: int | None) -> OpenAIError:
    return refused(refusals.array_too_long(param, limit, length))


def too_many_properties(param: str, limit: int) -> OpenAIError:
    return refused(refusals.too_many_properties(param, limit))


def string_too_long(param: str, limit: int) -> OpenAIError:
    return refused(refusals.string_too_long(param, limit))
