"""The middleware: everything that happens before and after a handler, in its order.

It is one function instead of a chain of aiohttp middlewares. Each of those would be one more
coroutine frame in every request, which all wake-ups of its task pass.
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from contract.memory import MemorySpentError
from contract.refusals import unknown_model
from edge.anthropic.errors import error_body, is_anthropic
from edge.exchange.machine import NO_LIMITS
from edge.metrics import CLIENT_LEFT
from edge.middleware.auth import check_key, route_path
from edge.middleware.cors import preflight_response
from edge.openai.errors import OpenAIError, internal_error, overloaded
from edge.openai.errors.http import method_not_allowed, unknown_path
from edge.state import EdgeRequest
from edge.upstream.router import ModelNotFoundError, NoReplicaError
from isthmus.v1.usage_pb2 import RateLimits

log = logging.getLogger(__name__)

SERVER: Final = "isthmus"
_EXPOSED: Final = "X-Request-ID"
# OpenAI's version of the REST API.
_VERSION: Final = "2020-10-01"

_REQUEST_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
# The error code of an error response; the observer reads it.
_ERROR = web.ResponseKey("error", str)


@web.middleware
async def serve(request: EdgeRequest, handler: Handler) -> web.StreamResponse:
    """Assigns the id, counts the request, checks its key, runs its handler, renders its failure."""
    edge = request.edge
    take_request_id(request)
    edge.requests += 1
    path = route_path(request)
    observer = edge.observer
    if observer is not None:
        observer.begin(request, path)
    status, error = CLIENT_LEFT, ""
    try:
        preflight = preflight_response(request) if edge.config.cors_origins else None
        if preflight is None and edge.keys is not None:
            check_key(request, path, edge.keys, edge.wrong_keys)
        response = await handler(request) if preflight is None else preflight
        status = response.status
        return response
    except Exception as failure:
        response = failure_response(request, failure)
        status, error = response.status, response[_ERROR]
        return response
    finally:
        edge.requests -= 1
        edge.metrics.responded(request.method, path, status)
        if observer is not None:
            observer.end(request, path, status, error)


def failure_response(request: EdgeRequest, failure: Exception) -> web.Response:
    """Makes the response to an exception of a handler; an unforeseen one is logged, and a 500.

    Raises:
        ConnectionError: The client has disconnected, or a part of a response is already sent.
    """
    match failure:
        case ModelNotFoundError(args=(name,)):
            error = OpenAIError.of(unknown_model(name))
        case NoReplicaError() | MemorySpentError():
            error = overloaded()
        case OpenAIError():
            error = failure
        case web.HTTPMethodNotAllowed():
            error = method_not_allowed(request.method, request.path)
        case web.HTTPNotFound():
            error = unknown_path(request.method, request.path)
        case ConnectionError():
            # The client has disconnected, or the edge has dropped it.
            raise failure
        case _:
            log.error("request %s failed", request.id, exc_info=failure)
            if request.writer.output_size:
                raise ConnectionError(
                    "a response was interrupted; another cannot follow it"
                ) from None
            error = internal_error()
    response = error_response(error, request)
    if isinstance(failure, web.HTTPMethodNotAllowed):
        response.headers["allow"] = ", ".join(sorted(failure.allowed_methods))
    if not request.content.is_eof():
        # Close the connection after the response instead of reading the rest of the body.
        response.force_close()
    return response


def error_response(error: OpenAIError, request: EdgeRequest | None = None) -> web.Response:
    """The response to a failed request, with retry and rate-limit headers.

    Its form is Anthropic's where is_anthropic says so, else OpenAI's, also if no request could be
    read.
    """
    if request is not None and is_anthropic(request.path, request.headers):
        body = error_body(error, request.id)
    else:
        body = error.body()
    response = web.Response(
        status=error.status,
        body=body,
        content_type="application/json",
        headers=error.headers() | rate_limit_headers(error.rate_limits),
    )
    response[_ERROR] = error.code or error.type
    return response


def new_request_id() -> str:
    """A random id in OpenAI's form, `req_` and 32 hexadecimal digits."""
    return f"req_{os.urandom(16).hex()}"


def take_request_id(request: EdgeRequest) -> None:
    """Stores the request's id (the caller's x-request-id if it is well-formed) and its start."""
    given = request.headers.get("x-request-id")
    if given is None or not _REQUEST_ID.fullmatch(given):
        given = new_request_id()
    request.id = given
    request.started = time.monotonic()


def common_headers(request: EdgeRequest) -> dict[str, str]:
    """The headers that every response to a request carries."""
    request_id = request.id or new_request_id()
    headers = {
        "server": SERVER,
        "x-request-id": request_id,
        "access-control-expose-headers": _EXPOSED,
    }
    if is_anthropic(request.path, request.headers):
        headers["request-id"] = request_id
    elif request.method == "POST" and request.started:
        headers["openai-version"] = _VERSION
        headers["openai-processing-ms"] = str(int((time.monotonic() - request.started) * 1000))
    return headers


def common_lines(request: EdgeRequest) -> str:
    """`common_headers` of a POST as they are sent: a template costs a third of the dict's lines."""
    if is_anthropic(request.path, request.headers):
        own = f"request-id: {request.id}\r\n"
    else:
        milliseconds = int((time.monotonic() - request.started) * 1000)
        own = f"openai-version: {_VERSION}\r\nopenai-processing-ms: {milliseconds}\r\n"
    return (
        f"server: {SERVER}\r\nx-request-id: {request.id}\r\n"
        f"access-control-expose-headers: {_EXPOSED}\r\n{own}"
    )


async def add_headers(request: EdgeRequest, response: web.StreamResponse) -> None:
    """The `on_response_prepare` handler: adds the common headers to responses and streams."""
    response.headers.update(common_headers(request))
    if request.edge.draining:
        # During a stop, close keep-alive connections: their clients would send more requests.
        response.headers["connection"] = "close"
        response.force_close()


def rate_limit_headers(limits: RateLimits) -> dict[str, str]:
    """The headers `-limit-`, `-remaining-` and `-reset-` of each limit; none for an absent one."""
    headers: dict[str, str] = {}
    if limits is NO_LIMITS:
        return headers
    for kind in ("requests", "tokens"):
        if limits.HasField(kind):
            limit = getattr(limits, kind)
            headers[f"x-ratelimit-limit-{kind}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(limit.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(limit.reset_ms)
    return headers


def duration(milliseconds: int) -> str:
    """A time in OpenAI's notation: 17ms, 1s, 8.64s, 6m0s."""
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
