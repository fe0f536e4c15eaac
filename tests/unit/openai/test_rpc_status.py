"""gRPC statuses of the inference service become OpenAI errors."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from edge.openai.errors import OpenAIError
from edge.openai.errors.rpc_status import from_rpc_status
from inference import errors as inference_errors
from inference.errors import InferenceError

SENT = {400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504}


def packed(detail: ErrorInfo | RetryInfo | BadRequest) -> Any:
    any_ = Any()
    any_.Pack(detail)
    return any_


def status(
    code: int, reason: str | None, *, domain: str = "isthmus", retry_ms: int = 0, **metadata: str
) -> Status:
    details = [packed(BadRequest())]
    if reason is not None:
        details.append(packed(ErrorInfo(domain=domain, reason=reason, metadata=metadata)))
    if retry_ms:
        delay = Duration(seconds=retry_ms // 1000, nanos=retry_ms % 1000 * 1_000_000)
        details.append(packed(RetryInfo(retry_delay=delay)))
    return Status(code=code, message="our message", details=details)


def seen(error: OpenAIError) -> tuple[int, str, str | None, str | None]:
    return error.status, error.type, error.code, error.param


INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("reason", "metadata", "expected"),
    [
        ("invalid_request_error", {}, (400, INVALID, None, None)),
        ("invalid_value", {"param": "stop"}, (400, INVALID, "invalid_value", "stop")),
        (
            "context_length_exceeded",
            {"param": "messages"},
            (400, INVALID, "context_length_exceeded", "messages"),
        ),
        ("model_not_found", {}, (404, INVALID, "model_not_found", None)),
        ("model_not_capable", {"param": "model"}, (404, INVALID, None, "model")),
        ("embeddings_not_allowed", {}, (403, INVALID, None, None)),
        ("rate_limit_exceeded", {}, (429, "requests", "rate_limit_exceeded", None)),
        ("rate_limit_exceeded", {"type": "tokens"}, (429, "tokens", "rate_limit_exceeded", None)),
        ("server_overloaded", {}, (429, "requests", "server_overloaded", None)),
        ("slow_reader", {}, (500, "server_error", None, None)),
        ("queue_timeout", {}, (503, "server_error", None, None)),
        ("draining", {}, (503, "server_error", None, None)),
        ("engine_unavailable", {}, (503, "server_error", None, None)),
        ("deadline_exceeded", {}, (504, "server_error", "deadline_exceeded", None)),
        ("server_error", {}, (500, "server_error", None, None)),
        # The service refused the edge's credential, not the client's.
        ("missing_api_key", {}, (502, "server_error", None, None)),
        ("invalid_api_key", {}, (502, "server_error", None, None)),
        ("insufficient_scope", {}, (502, "server_error", None, None)),
    ],
)
def test_status_with_a_reason_becomes_its_openai_error(
    reason: str, metadata: dict[str, str], expected: tuple[int, str, str | None, str | None]
) -> None:
    made = InferenceError(reason, "our message", type=metadata.get("type"))
    received = status(made.status.value[0], reason, type=made.type, param=metadata.get("param", ""))
    error = from_rpc_status(received, admitted=False)
    assert seen(error) == expected
    assert (error.message == "our message") is (error.status != 502)


def test_every_reason_of_the_service_becomes_an_allowed_http_status() -> None:
    for reason, row in inference_errors._TABLE.items():
        for admitted in (False, True):
            received = status(row.status.value[0], reason, type=row.type)
            assert from_rpc_status(received, admitted=admitted).status in SENT


@pytest.mark.parametrize("admitted", [False, True])
@pytest.mark.parametrize("code", [*Code.values(), 99])
def test_status_of_the_transport_becomes_502_503_or_504(code: int, admitted: bool) -> None:
    if code == Code.OK:
        return
    expected = {Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 504}.get(code, 502)
    for received in (
        Status(code=code, message="ipv4:10.0.0.1:50051: secret"),
        status(code, "invalid_value", domain="elsewhere.example"),
        status(code, ""),
    ):
        error = from_rpc_status(received, admitted=admitted)
        assert error.status == expected
        assert (error.type, error.param) == ("server_error", None)
        assert "secret" not in error.message
        assert "our message" not in error.message


def test_retry_headers_follow_the_status() -> None:
    def headers(received: Status) -> dict[str, str]:
        return from_rpc_status(received, admitted=False).headers()

    overloaded = status(Code.RESOURCE_EXHAUSTED, "server_overloaded", retry_ms=2300)
    assert headers(overloaded) == {"retry-after": "3", "retry-after-ms": "2300"}
    soon = status(Code.UNAVAILABLE, "draining", retry_ms=1)
    assert headers(soon) == {"retry-after": "1", "retry-after-ms": "1"}
    for silent in (status(Code.UNAVAILABLE, "draining"), Status(code=Code.UNAVAILABLE)):
        assert headers(silent)["retry-after"] == "1"
    assert headers(status(Code.RESOURCE_EXHAUSTED, "rate_limit_exceeded"))["retry-after"] == "1"
    for late in (status(Code.DEADLINE_EXCEEDED, "x"), Status(code=Code.DEADLINE_EXCEEDED)):
        assert headers(late) == {"x-should-retry": "false"}
    assert headers(Status(code=Code.RESOURCE_EXHAUSTED)) == {"x-should-retry": "false"}
    assert headers(status(Code.INVALID_ARGUMENT, "invalid_value")) == {}


def test_unknown_reason_is_mapped_by_its_grpc_code() -> None:
    error = from_rpc_status(status(Code.OUT_OF_RANGE, "brand_new", param="x"), admitted=False)
    assert seen(error) == (400, INVALID, "brand_new", "x")


def test_damaged_error_details_are_a_transport_error() -> None:
    broken = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    retry = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    assert from_rpc_status(Status(code=3, details=[broken]), admitted=False).status == 502
    received = status(Code.UNAVAILABLE, "draining")
    received.details.insert(0, retry)
    assert from_rpc_status(received, admitted=False).headers()["retry-after"] == "1"


def test_status_without_a_message_gets_a_default_message() -> None:
    received = status(Code.INTERNAL, "server_error")
    received.message = ""
    assert json.loads(from_rpc_status(received, admitted=True).body())["error"]["message"]
