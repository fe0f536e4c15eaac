"""google.rpc.Status to OpenAI's errors.

A status with the project's ErrorInfo comes from the inference service. Any other comes from the
transport, and its code and text are not sent to the client: a message over the size limit is
RESOURCE_EXHAUSTED too, but is not a rate limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from contract.failures import INTERNAL_ERROR
from edge.openai import errors
from edge.openai.errors import STATUS_OF_REASON, WITHOUT_CODE, OpenAIError
from isthmus.v1.usage_pb2 import RateLimits

_Detail = TypeVar("_Detail", bound=Message)
DOMAIN: Final = "isthmus"
_DEFAULT_RETRY_MS: Final = 1000


# HTTP status for the gRPC code of a status with ErrorInfo; 500 for codes not listed.
# A refusal of the edge's credential is a 502: the client's own key was checked at the edge.
_STATUS_OF_CODE: Final[dict[int, int]] = {
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 502,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 502,
}


def from_rpc_status(status: Status, *, admitted: bool) -> OpenAIError:
    """The REST error for a call that ended with `status`.

    Args:
        status: Not OK; unknown details are ignored.
        admitted: Whether the service had admitted the call. It decides the text if the service
            could not be reached or was lost.
    """
    info = _error_info(status)
    if info is None:
        return _of_transport(status.code, admitted=admitted)
    http_status = STATUS_OF_REASON.get(info.reason, _STATUS_OF_CODE.get(status.code, 500))
    if http_status == 502:
        return errors.bad_upstream()
    error = OpenAIError(
        http_status,
        status.message or INTERNAL_ERROR,
        type=info.metadata.get("type") or ("requests" if http_status == 429 else ""),
        param=info.metadata.get("param") or None,
        retry_after_ms=_retry_after_ms(status, http_status),
        should_retry=False if http_status == 504 else None,
        rate_limits=next(_details(status, RateLimits), RateLimits()),
    )
    if info.reason not in (*WITHOUT_CODE, error.type):
        error.code = info.reason
    return error


def reason_of(status: Status) -> str | None:
    """The reason that the inference service gave; None if the status is the transport's."""
    info = _error_info(status)
    return None if info is None else info.reason


def _of_transport(code: int, *, admitted: bool) -> OpenAIError:
    if code == Code.UNAVAILABLE:
        return errors.upstream_lost() if admitted else errors.overloaded()
    return errors.timed_out() if code == Code.DEADLINE_EXCEEDED else errors.bad_upstream()


def _error_info(status: Status) -> ErrorInfo | None:
    infos = _details(status, ErrorInfo)
    return next((info for info in infos if info.domain == DOMAIN and info.reason), None)


def _retry_after_ms(status: Status, http_status: int) -> int | None:
    for retry in _details(status, RetryInfo):
        delay = retry.retry_delay
        return max(0, int(delay.seconds) * 1000 + int(delay.nanos) // 1_000_000)
    return _DEFAULT_RETRY_MS if http_status in (429, 503) else None


def _details(status: Status, kind: type[_Detail]) -> Iterator[_Detail]:
    """The details of one type; malformed ones are skipped."""
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            try:
                detail = kind.FromString(packed.value)
            except DecodeError:
                continue
            yield detail
