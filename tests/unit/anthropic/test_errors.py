"""Errors in Anthropic's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.anthropic.errors import error_body, error_object, is_anthropic
from edge.openai.errors import OpenAIError


def body(error: OpenAIError) -> Any:
    return json.loads(error_body(error, "req_1"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_error_type_follows_from_the_http_status(status: int, kind: str) -> None:
    assert body(OpenAIError(status, "m")) == {
        "type": "error",
        "error": {"type": kind, "message": "m"},
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("path", "asked", "plain"),
    [
        ("/v1/messages", True, True),
        ("/v1/messages/count_tokens", True, True),
        ("/v1/messages/", True, True),
        ("/v1/messagesx", False, False),
        ("/v1/models", True, False),
        ("/v1/models/m", True, False),
        ("/v1/modelsx", False, False),
        ("/v1/chat/completions", False, False),
    ],
)
def test_paths_have_anthropics_errors(path: str, asked: bool, plain: bool) -> None:
    assert is_anthropic(path, {"anthropic-version"}) is asked
    assert is_anthropic(path, set()) is plain


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OpenAIError(400, "Too big.", param="max_tokens"), "max_tokens: Too big."),
        (OpenAIError(400, "'max_tokens' is too big.", param="max_tokens"),
         "'max_tokens' is too big."),
        (OpenAIError(400, "Too long.", code="context_length_exceeded", param="messages"),
         "prompt is too long: Too long."),
    ],
)  # fmt: skip
def test_message_names_what_clients_look_for(error: OpenAIError, message: str) -> None:
    assert error_object(error).message == message


def test_refused_thread_makes_sdks_send_the_whole_conversation() -> None:
    error = body(OpenAIError(400, "No threads.", param="thread"))["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in body(OpenAIError(400, "m", param="messages"))["error"]
