"""The deadline, id, tracing headers and priority that accompany a call to inference."""

from __future__ import annotations

import re

from aiohttp import web

from edge.openai.errors import invalid_request
from edge.state import EDGE, PRINCIPAL, REQUEST_ID
from edge.upstream.transport import CallOptions

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_TRACESTATE = re.compile(r"[\x21-\x7e ]{1,512}")


def call_options(request: web.Request, priority: int | None = None) -> CallOptions:
    """Reads x-request-timeout, traceparent and tracestate.

    The timeout is in seconds and can only shorten `request_seconds`. Malformed tracing headers
    are dropped.

    Args:
        request: The HTTP request.
        priority: Its `priority` parameter; None if it has none.

    Raises:
        OpenAIError: 400, the timeout is not a positive number.
    """
    timeout_seconds = request.app[EDGE].config.request_seconds
    if (given := request.headers.get("x-request-timeout")) is not None:
        timeout_seconds = min(timeout_seconds, _seconds(given))
    metadata = {"x-request-id": request[REQUEST_ID]}
    for name, pattern in (("traceparent", _TRACEPARENT), ("tracestate", _TRACESTATE)):
        if (value := request.headers.get(name)) is not None and pattern.fullmatch(value):
            metadata[name] = value
    if priority is not None:
        metadata["x-priority"] = str(priority)
    return CallOptions(timeout_seconds, metadata, request.get(PRINCIPAL, ""))


def _seconds(text: str) -> float:
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII) and (seconds := float(text)) > 0:
        return seconds
    raise invalid_request(
        "Invalid 'x-request-timeout': expected a positive number of seconds.",
        "x-request-timeout",
        "invalid_value",
    )
