"""Reads a request's body, up to a limit, and the headers that set options of its calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, TypeVar

from aiohttp import web

from contract.memory import Holding
from contract.tracing import trace_headers
from edge.config import EdgeConfig
from edge.openai.errors import http as http_errors
from edge.openai.errors import invalid_request
from edge.state import EdgeRequest
from edge.upstream.transport import CallOptions

T = TypeVar("T", bytes, bytearray)

# Bytes per second: a body must arrive within `body_seconds` plus its size divided by this.
SLOWEST_BYTES_PER_SECOND: Final = 16 * 1024


async def read_body(request: EdgeRequest) -> bytes:
    """The whole body of a JSON request.

    Raises:
        OpenAIError: 400 (content type, framing, or too slow), 413, 415.
        MemorySpentError: `memory_budget_bytes` has no room for it.
    """
    config = request.edge.config
    holding = request.connection.holding
    content, headers = request.content, request.headers
    given = headers.get("content-type", "")
    # Most clients send exactly this; comparing it first avoids parsing the header.
    if given != "application/json" and request.content_type != "application/json":
        raise http_errors.unsupported_content_type(given)
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity" and encoding.lower() != "identity":
        raise http_errors.unsupported_content_encoding(encoding)
    try:
        if content.is_eof():
            # A small body usually arrives together with the head, so no wait is needed.
            return _hold(holding, content.read_nowait(), 0, config)
        if (request.content_length or 0) > config.max_body_bytes:
            raise http_errors.body_too_large(config.max_body_bytes)
        body = bytearray()
        async with asyncio.timeout(config.body_seconds) as limit:
            while chunk := await content.readany():
                held = len(body)
                body += chunk
                _hold(holding, body, held, config)
                if (when := limit.when()) is not None:
                    limit.reschedule(when + len(chunk) / SLOWEST_BYTES_PER_SECOND)
    except web.RequestPayloadError as error:
        raise http_errors.malformed_request() from error
    except TimeoutError as error:
        raise http_errors.body_timeout() from error
    return bytes(body)


def _hold(holding: Holding, body: T, held: int, config: EdgeConfig) -> T:
    """Counts what a body has grown by since it had `held` bytes, and checks both limits."""
    if len(body) > config.max_body_bytes:
        raise http_errors.body_too_large(config.max_body_bytes)
    holding.take(len(body) - held)
    return body


def call_options(
    request: EdgeRequest,
    priority: int | None = None,
    affinity: Callable[[], str] | None = None,
) -> CallOptions:
    """Reads x-request-timeout, traceparent and tracestate; with tracing, those of its own span.

    The timeout is in seconds and can only shorten `request_seconds`. Malformed tracing headers
    are dropped.

    Args:
        request: The HTTP request.
        priority: Its `priority` parameter; None if it has none.
        affinity: CallOptions.affinity.

    Raises:
        OpenAIError: 400, the timeout is not a positive number.
    """
    timeout_seconds = request.edge.config.request_seconds
    if (given := request.headers.get("x-request-timeout")) is not None:
        timeout_seconds = min(timeout_seconds, _seconds(given))
    outcome = request.outcome
    if outcome is None or (headers := outcome.trace_headers) is None:
        headers = trace_headers(request.headers)
    metadata = {"x-request-id": request.id, **headers}
    if priority is not None:
        metadata["x-priority"] = str(priority)
    return CallOptions(timeout_seconds, metadata, request.principal, affinity)


def _seconds(text: str) -> float:
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII) and (seconds := float(text)) > 0:
        return seconds
    raise invalid_request(
        "Invalid 'x-request-timeout': expected a positive number of seconds.",
        "x-request-timeout",
        "invalid_value",
    )
