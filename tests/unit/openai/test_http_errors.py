"""Errors of the HTTP level have OpenAI's status, code, param and message for any header bytes."""

from __future__ import annotations

import json

import pytest

from contract import refusals
from edge.openai import errors
from edge.openai.errors import OpenAIError
from edge.openai.errors import http as http_errors

TABLE: list[tuple[OpenAIError, int, str | None, str | None, str]] = [
    (http_errors.malformed_request(), 400, "malformed_request", None, "The request could not be "),
    (http_errors.line_too_long(5), 400, "header_too_long", None, "The request's address or one of"),
    (http_errors.unsupported_expectation(), 400, "unsupported_expectation", None, "The Expect "),
    (http_errors.unknown_path("POST", "/v1/nope"), 404, None, None, "Invalid URL (POST /v1/nope)"),
    (http_errors.unknown_path("GET", "/x"), 404, "unknown_url", None, "Unknown request URL: GET "),
    (
        http_errors.method_not_allowed("GET", "/v1/embeddings"),
        405,
        "method_not_supported",
        None,
        "Not allowed to GET on /v1/embeddings (HINT: ",
    ),
    (http_errors.missing_api_key(), 401, None, None, "You didn't provide an API key. "),
    (http_errors.invalid_api_key(), 401, "invalid_api_key", None, "Incorrect API key provided"),
    (http_errors.insufficient_scope(), 403, "insufficient_permissions", None, "Your API key"),
    (http_errors.body_too_large(5), 413, "request_too_large", None, "The request body is too"),
    (
        http_errors.unsupported_content_type("text/plain"),
        400,
        "unsupported_content_type",
        None,
        "Unsupported content type: 'text/plain'. This API method only accepts 'application/json' ",
    ),
    (
        http_errors.unsupported_content_encoding("gzip"),
        415,
        "unsupported_content_encoding",
        None,
        "Unsupported content encoding: 'gzip'",
    ),
    (http_errors.body_timeout(), 400, "body_timeout", None, "The request body"),
    (
        OpenAIError.of(refusals.unknown_model("x")),
        404,
        "model_not_found",
        None,
        "The model `x` does not exist or ",
    ),
    (errors.unknown_model_path("x"), 404, "model_not_found", "model", "The model 'x' does not"),
    (
        OpenAIError.of(refusals.not_a_chat_model()),
        404,
        None,
        "model",
        "This is not a chat model and thus not",
    ),
    (
        OpenAIError.of(refusals.not_a_completion_model()),
        404,
        None,
        "model",
        "This model is not supported in the v1",
    ),
    (
        OpenAIError.of(refusals.not_an_embedding_model()),
        403,
        None,
        None,
        "You are not allowed to generate embed",
    ),
]


@pytest.mark.parametrize(("error", "status", "code", "param", "message"), TABLE)
def test_http_error_has_status_code_param_and_message(
    error: OpenAIError, status: int, code: str | None, param: str | None, message: str
) -> None:
    body = json.loads(error.body())
    assert error.status == status
    assert body["error"].pop("message").startswith(message)
    assert body == {"error": {"type": "invalid_request_error", "param": param, "code": code}}


@pytest.mark.parametrize("text", ["\udcff\udcfe", "é" * 500, "a\r\nb", "", "\x00"])
def test_error_may_quote_headers_and_paths_of_any_bytes(text: str) -> None:
    for error in (
        http_errors.unsupported_content_type(text),
        http_errors.unsupported_content_encoding(text),
        http_errors.unknown_path("GET", text),
        http_errors.method_not_allowed(text, text),
        OpenAIError.of(refusals.unknown_model(text)),
        errors.unknown_model_path(text),
    ):
        assert len(error.body()) < 2048
        assert b"\r" not in error.body()
