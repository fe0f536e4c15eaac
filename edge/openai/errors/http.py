"""Errors of the HTTP level: about URLs, keys, headers and bodies."""

from __future__ import annotations

import re
from typing import Final

from contract.failures import INVALID_API_KEY
from contract.failures import too_many_wrong_keys as wrong_keys_message
from contract.refusals import shown
from edge.openai.errors import OpenAIError

# Texts of aiohttp's parsers, in C and in Python. The names in them are aiohttp's, not the client's.
_HEADER_FAULTS: Final = {
    re.compile(r"Duplicate '?([A-Za-z-]+)'?(?: header found|:)"): "is sent more than once",
    re.compile(r"Missing '([A-Za-z-]+)' header"): "is missing",
    re.compile(r"Invalid `([A-Za-z-]+)` header value"): "is invalid, or is sent more than once",
}


def malformed_request() -> OpenAIError:
    """400: the request is not valid HTTP."""
    return OpenAIError(
        400,
        "The request could not be read as HTTP/1.1. Check its request line, the number "
        "and form of its headers, and the framing of its body.",
        code="malformed_request",
    )


def malformed_header(fault: str) -> OpenAIError:
    """400: the request is not valid HTTP; named is the header of which aiohttp's `fault` tells."""
    for pattern, explanation in _HEADER_FAULTS.items():
        if match := pattern.match(fault):
            return OpenAIError(
                400,
                "The request could not be read as HTTP/1.1. "
                f"The header '{match[1].lower()}' {explanation}.",
                code="malformed_request",
            )
    return malformed_request()


def line_too_long(limit_bytes: int) -> OpenAIError:
    """400: the URL or a header exceeds the edge's limit."""
    return OpenAIError(
        400,
        "The request's address or one of its headers is too long. The maximum is "
        f"{limit_bytes} bytes.",
        code="header_too_long",
    )


def unsupported_expectation() -> OpenAIError:
    """400: the Expect header is not 100-continue (417 is never sent)."""
    return OpenAIError(
        400, "The Expect header can only be '100-continue'.", code="unsupported_expectation"
    )


def unknown_path(method: str, path: str) -> OpenAIError:
    """404: no such path; outside /v1 the base URL probably lacks it."""
    shown_url = f"{shown(method)} {shown(path, 256)}"
    if path.startswith("/v1/"):
        return OpenAIError(404, f"Invalid URL ({shown_url})")
    return OpenAIError(
        404,
        f"Unknown request URL: {shown_url}. Check it for typos; the paths of this API begin with "
        "/v1/.",
        code="unknown_url",
    )


def file_not_found() -> OpenAIError:
    """404: the image does not exist or has expired."""
    return OpenAIError(404, "There is no such file. Files are kept for a limited time only.")


def invalid_host() -> OpenAIError:
    """400: the Host header, which image URLs are made from, is malformed."""
    return OpenAIError(400, "The Host header is not a valid host.", code="malformed_request")


def method_not_allowed(method: str, path: str) -> OpenAIError:
    """405: the path exists, the method does not; the response also needs an Allow header."""
    return OpenAIError(
        405,
        f"Not allowed to {shown(method)} on {shown(path, 256)} "
        "(HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
    )


def missing_api_key() -> OpenAIError:
    """401: the request has no key."""
    return OpenAIError(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or in an x-api-key "
        "header.",
    )


def invalid_api_key() -> OpenAIError:
    """401: the key is unknown; the message does not repeat it."""
    return OpenAIError(401, INVALID_API_KEY, code="invalid_api_key")


def too_many_wrong_keys(retry_after_ms: int) -> OpenAIError:
    """429: wrong keys came from one address too often; the SDKs must not repeat this one."""
    return OpenAIError(
        429,
        wrong_keys_message(retry_after_ms),
        type="requests",
        code="rate_limit_exceeded",
        retry_after_ms=retry_after_ms,
        should_retry=False,
    )


def insufficient_scope() -> OpenAIError:
    """403: the key's scopes do not allow the request."""
    return OpenAIError(
        403, "Your API key is not allowed to do this.", code="insufficient_permissions"
    )


def body_too_large(limit_bytes: int) -> OpenAIError:
    """413: the body exceeds the edge's limit."""
    return OpenAIError(
        413,
        f"The request body is too large. The maximum is {limit_bytes} bytes.",
        code="request_too_large",
    )


def references_too_large(limit_bytes: int, param: str) -> OpenAIError:
    """413: the kept items that a request refers to exceed the limit of a body."""
    return OpenAIError(
        413,
        f"What '{param}' refers to is too large. The maximum is {limit_bytes} bytes.",
        code="request_too_large",
        param=param,
    )


def unsupported_content_type(content_type: str) -> OpenAIError:
    """400: the content type is not application/json."""
    return OpenAIError(
        400,
        f"Unsupported content type: '{_printable(content_type)}'. This API method only accepts "
        "'application/json' requests, but you specified the header 'Content-Type: "
        f"{_printable(content_type)}'.",
        code="unsupported_content_type",
    )


def unsupported_content_encoding(encoding: str) -> OpenAIError:
    """415: the body is compressed."""
    return OpenAIError(
        415,
        f"Unsupported content encoding: '{_printable(encoding)}'. Send the body uncompressed.",
        code="unsupported_content_encoding",
    )


def body_timeout() -> OpenAIError:
    """400: the body did not arrive in time (408 would make SDKs repeat it)."""
    return OpenAIError(400, "The request body did not arrive in time.", code="body_timeout")


def files_unavailable() -> OpenAIError:
    """500: images cannot be stored; generating them again would not help."""
    return OpenAIError(
        500,
        "Pictures cannot be stored for fetching at this time. Ask for `response_format`: "
        "'b64_json' instead.",
        code="files_unavailable",
        param="response_format",
        should_retry=False,
    )


def _printable(text: str) -> str:
    """Replaces the non-ASCII characters of a header (latin-1, lone surrogates) by "?"."""
    return shown(text.encode("ascii", "replace").decode("ascii"))
