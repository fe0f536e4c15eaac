"""google.rpc.Status to OpenAI's errors: the one table between the two worlds.

A status that carries our ErrorInfo was said by the inference service and means what it says. Any
other was made by the transport, and tells the caller nothing but that the service could not be
used: an oversize message is RESOURCE_EXHAUSTED too, and yet no rate limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from edge.openai import errors
from edge.openai.errors import STATUS_OF_REASON, WITHOUT_CODE, OpenAIError
from isthmus.v1.usage_pb2 import RateLimits

_Detail = TypeVar("_Detail", bound=Message)

DOMAIN: Final = "isthmus"
_DEFAULT_RETRY_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class _Row:
    """HTTP statuses for one gRPC code."""

    said: int
    inferred: int


# The service's refusal of a credential is a fault between it and the edge: the caller's own key
# was checked at the edge. That is a 502, never a 401 that sends the caller hunting for a key.
_TABLE: Final[dict[int, _Row]] = {
    Code.CANCELLED: _Row(500, 502),
    Code.UNKNOWN: _Row(500, 502),
    Code.INVALID_ARGUMENT: _Row(400, 502),
    Code.DEADLINE_EXCEEDED: _Row(504, 504),
    Code.NOT_FOUND: _Row(404, 502),
    Code.ALREADY_EXISTS: _Row(500, 502),
    Code.PERMISSION_DENIED: _Row(502, 502),
    Code.RESOURCE_EXHAUSTED: _Row(429, 502),
    Code.FAILED_PRECONDITION: _Row(400, 502),
    Code.ABORTED: _Row(500, 502),
    Code.OUT_OF_RANGE: _Row(400, 502),
    Code.UNIMPLEMENTED: _Row(500, 502),
    Code.INTERNAL: _Row(500, 502),
    Code.UNAVAILABLE: _Row(503, 503),
    Code.DATA_LOSS: _Row(500, 502),
    Code.UNAUTHENTICATED: _Row(502, 502),
}
_UNLISTED: Final = _Row(500, 502)

_TYPE_OF_STATUS: Final = {429: "requests", 500: "server_error", 503: "server_error"}


def from_rpc_status(status: Status, *, admitted: bool) -> OpenAIError:
    """The REST error for a call that ended with `status`.

    Args:
        status: Not OK; details are read, unknown ones ignored.
        admitted: Whether the service had admitted the call; only tells apart, in words, a
            service that could not be reached from one that was lost while it answered.
    """
    info = _error_info(status)
    row = _TABLE.get(status.code, _UNLISTED)
    if info is None:
        return _inferred(row.inferred, admitted=admitted)
    http_status = STATUS_OF_REASON.get(info.reason, row.said)
    if http_status == 502:
        return errors.bad_upstream()
    error_type = info.metadata.get("type") or _TYPE_OF_STATUS.get(
        http_status, "invalid_request_error" if http_status < 500 else "server_error"
    )
    return OpenAIError(
        http_status,
        status.message or errors.internal_error().message,
        type=error_type,
        code=None if info.reason in WITHOUT_CODE or info.reason == error_type else info.reason,
        param=info.metadata.get("param") or None,
        retry_after_ms=_retry_after_ms(status, http_status),
        should_retry=False if http_status == 504 else None,
        rate_limits=next(_details(status, RateLimits), None),
    )


def reason_of(status: Status) -> str | None:
    """The reason that the inference service gave; None if the transport made the status."""
    info = _error_info(status)
    return None if info is None else info.reason


def _inferred(http_status: int, *, admitted: bool) -> OpenAIError:
    if http_status == 503:
        return errors.upstream_lost() if admitted else errors.overloaded()
    if http_status == 504:
        return errors.timed_out()
    return errors.bad_upstream()


def _error_info(status: Status) -> ErrorInfo | None:
    infos = _details(status, ErrorInfo)
    return next((info for info in infos if info.domain == DOMAIN and info.reason), None)


def _retry_after_ms(status: Status, http_status: int) -> int | None:
    for retry in _details(status, RetryInfo):
        delay = retry.retry_delay
        return max(0, int(delay.seconds) * 1000 + int(delay.nanos) // 1_000_000)
    return _DEFAULT_RETRY_MS if http_status in (429, 503) else None


def _details(status: Status, kind: type[_Detail]) -> Iterator[_Detail]:
    """All details of a kind but damaged ones."""
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            try:
                detail = kind.FromString(packed.value)
            except DecodeError:
                continue
            yield detail
