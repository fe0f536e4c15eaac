"""The errors of the inference service: one exception, one table.

The public text of a failure is written in this project, never `str()` of a foreign exception, which
can hold paths, addresses and prompts. Foreign exceptions become `InferenceError` where they are
caught, with `from`, and the original is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from contract import refusals
from contract.failures import INTERNAL_ERROR, OVERLOADED
from contract.refusals import NO_CODE, Refusal
from contract.request_metrics import CANCELLED
from isthmus.v1.usage_pb2 import RateLimits


@dataclass(frozen=True, slots=True)
class _Row:
    status: grpc.StatusCode
    type: str


_INVALID: Final = _Row(grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error")

# Reason -> gRPC status and OpenAI error type. The reason is OpenAI's error code; where OpenAI
# sends `code: null` the reason repeats the type.
_TABLE: Final[dict[str, _Row]] = {
    "invalid_request_error": _INVALID,
    "missing_required_parameter": _INVALID,
    "invalid_type": _INVALID,
    "invalid_value": _INVALID,
    "integer_above_max_value": _INVALID,
    "integer_below_min_value": _INVALID,
    "decimal_above_max_value": _INVALID,
    "decimal_below_min_value": _INVALID,
    "array_above_max_length": _INVALID,
    "string_above_max_length": _INVALID,
    "object_above_max_properties": _INVALID,
    "empty_array": _INVALID,
    "unsupported_parameter": _INVALID,
    "unsupported_value": _INVALID,
    "context_length_exceeded": _INVALID,
    "invalid_function_parameters": _INVALID,
    "invalid_size": _INVALID,
    "content_policy_violation": _INVALID,
    "model_not_found": _Row(grpc.StatusCode.NOT_FOUND, "invalid_request_error"),
    "embeddings_not_allowed": _Row(grpc.StatusCode.FAILED_PRECONDITION, "invalid_request_error"),
    "model_not_capable": _Row(grpc.StatusCode.FAILED_PRECONDITION, "invalid_request_error"),
    "missing_api_key": _Row(grpc.StatusCode.UNAUTHENTICATED, "invalid_request_error"),
    "invalid_api_key": _Row(grpc.StatusCode.UNAUTHENTICATED, "invalid_request_error"),
    "insufficient_scope": _Row(grpc.StatusCode.PERMISSION_DENIED, "invalid_request_error"),
    "rate_limit_exceeded": _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "requests"),
    "server_overloaded": _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "requests"),
    "slow_reader": _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "server_error"),
    "out_of_memory": _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "server_error"),
    "queue_timeout": _Row(grpc.StatusCode.UNAVAILABLE, "server_error"),
    "draining": _Row(grpc.StatusCode.UNAVAILABLE, "server_error"),
    "engine_died": _Row(grpc.StatusCode.UNAVAILABLE, "server_error"),
    "engine_unavailable": _Row(grpc.StatusCode.UNAVAILABLE, "server_error"),
    "deadline_exceeded": _Row(grpc.StatusCode.DEADLINE_EXCEEDED, "server_error"),
    "constraint_violated": _Row(grpc.StatusCode.INTERNAL, "server_error"),
    "server_error": _Row(grpc.StatusCode.INTERNAL, "server_error"),
}


def status_name(reason: str) -> str:
    """The gRPC status of a call that ended for a reason; "" is a success."""
    if reason in ("", CANCELLED):
        return reason.upper() or "OK"
    return _TABLE[reason].status.name


class InferenceError(Exception):
    """A failure that is sent to the caller.

    Args:
        reason: A key of the table above.
        message: Public text, at most 1 KiB on the wire.
        param: OpenAI's name of the parameter at fault ("messages", "temperature").
        retry_after_ms: Milliseconds after which a retry can succeed; None if unknown.
        type: Overrides the table's OpenAI error type ("tokens" for a token limit).
        rate_limits: The caller's remaining limits if a limit is the reason.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_ms: int | None = None,
        type: str | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message)
        row = _TABLE[reason]
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.rate_limits = rate_limits
        self.status = row.status
        self.type = type or row.type

    @classmethod
    def of(cls, refusal: Refusal) -> InferenceError:
        """The error for a refusal whose text edge and inference service share."""
        return cls(refusal.reason, refusal.message, param=refusal.param)


def internal_error() -> InferenceError:
    """The error for every internal fault; the text does not describe it."""
    return InferenceError("server_error", INTERNAL_ERROR)


_DOMAIN: Final = "isthmus"
# All trailers together are limited to about 8 KiB; the message is in them twice.
_MAX_MESSAGE_CHARACTERS: Final = 1024


def to_rpc_status(error: InferenceError) -> status_pb2.Status:
    """Renders a failure as google.rpc.Status: ErrorInfo, BadRequest, RetryInfo, RateLimits."""
    message = error.message[:_MAX_MESSAGE_CHARACTERS]
    status = status_pb2.Status(code=error.status.value[0], message=message)
    info = error_details_pb2.ErrorInfo(
        domain=_DOMAIN, reason=error.reason, metadata={"type": error.type}
    )
    if error.param is not None:
        info.metadata["param"] = error.param
    status.details.add().Pack(info)
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param, description=message
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        status.details.add().Pack(retry)
    if error.rate_limits is not None:
        status.details.add().Pack(error.rate_limits)
    return status


# Errors that only the inference service raises, and checks that raise the shared ones


def broken_rule(message: str, param: str) -> InferenceError:
    """The request breaks a rule that has its own text and no code."""
    return InferenceError(NO_CODE, message, param=param)


def invalid_value(message: str, param: str) -> InferenceError:
    """A parameter has a value that cannot be used; `message` is the public text."""
    return InferenceError("invalid_value", message, param=param)


def check_length(length: int, limit: int, param: str) -> None:
    """Refuses a list with more than `limit` entries."""
    if length > limit:
        raise InferenceError.of(refusals.array_too_long(param, limit, length))


def check_properties(count: int, limit: int, param: str) -> None:
    """Refuses an object with more than `limit` properties."""
    if count > limit:
        raise InferenceError.of(refusals.too_many_properties(param, limit, count))


def check_string(length: int, limit: int, param: str) -> None:
    """Refuses a string of more than `limit` characters or bytes, whichever `length` counts."""
    if length > limit:
        raise InferenceError.of(refusals.string_too_long(param, limit))


def check_vocabulary(ids: Sequence[int], size: int, param: str) -> None:
    """Refuses token ids of which one is not below `size`; the error names the first."""
    if max(ids, default=0) >= size:
        index, token = next((i, token) for i, token in enumerate(ids) if token >= size)
        raise InferenceError.of(refusals.unknown_token(token, size, f"{param}[{index}]"))


def below(param: str, lowest: float, value: float, *, allowed: bool = True) -> InferenceError:
    """A number is below its range; `allowed` is whether the range includes `lowest`."""
    return _out_of_range(param, f"{'>=' if allowed else '>'} {lowest}", value)


def above(param: str, highest: float, value: float) -> InferenceError:
    """A number is above its range."""
    return _out_of_range(param, f"<= {highest}", value)


def _out_of_range(param: str, expected: str, value: float) -> InferenceError:
    kind = "integer" if isinstance(value, int) else "decimal"
    return InferenceError.of(refusals.out_of_range(param, kind, expected, f"{value:.15g}"))


# The model's own limits


def context_error(
    chat: bool,
    context_length: int,
    prompt_tokens: int,
    answer_tokens: int,
    *,
    exact: bool = True,
    param: str | None = None,
) -> InferenceError:
    """The prompt, or prompt and output together, exceed the context.

    OpenAI has two texts: the one for chats has a code and a param, the one for completions and
    embeddings has neither.

    Args:
        chat: Whether the request is a chat.
        context_length: Tokens of the context.
        prompt_tokens: Tokens of the messages, the prompt or the input.
        answer_tokens: Tokens that the output needs or was allowed; 0 if there is none.
        exact: False if `prompt_tokens` is a lower bound.
        param: Of embeddings, the path of the input. OpenAI's error does not name the only one.
    """
    at_least = "" if exact else "at least "
    total = f"{at_least}{prompt_tokens + answer_tokens}"
    if not chat:
        param = None if param == "input" else param
        prompt = f"'{param}'" if param else "your prompt"
        return InferenceError(
            NO_CODE,
            f"This model's maximum context length is {context_length} tokens, however you "
            f"requested {total} tokens ({at_least}{prompt_tokens} in {prompt}; "
            f"{answer_tokens} for the completion). Please reduce your prompt; or completion "
            "length.",
            param=param,
        )
    if not answer_tokens:
        detail = f"your messages resulted in {total} tokens. "
        detail += "Please reduce the length of the messages."
    else:
        detail = (
            f"you requested {total} tokens ({at_least}{prompt_tokens} in the messages, "
            f"{answer_tokens} in the completion). "
            "Please reduce the length of the messages or completion."
        )
    return InferenceError(
        "context_length_exceeded",
        f"This model's maximum context length is {context_length} tokens. However, {detail}",
        param="messages",
    )


def overloaded(retry_after_ms: int) -> InferenceError:
    """There is no room for another call."""
    return InferenceError(
        "server_overloaded",
        "The server is overloaded: too many requests are waiting. Please try again later.",
        retry_after_ms=retry_after_ms,
    )


def memory_spent() -> InferenceError:
    """The memory budget has no room for the output of a running call."""
    return InferenceError("out_of_memory", OVERLOADED, retry_after_ms=1000)


def prompt_too_long(param: str, limit: int, tokens: int) -> InferenceError:
    """The prompt of an image has more tokens than the model's text encoder reads."""
    return InferenceError(
        "string_above_max_length",
        f"Invalid '{param}': the model reads at most {limit} tokens, but got {tokens}.",
        param=param,
    )


def unsafe_image() -> InferenceError:
    """The model's safety checker rejected the finished image."""
    return InferenceError(
        "content_policy_violation",
        "Your request was rejected by the safety checker of the model.",
    )
