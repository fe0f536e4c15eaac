"""Responses for failures: each has OpenAI's error object as its body."""

from __future__ import annotations

import logging

from aiohttp import web

from contract.refusals import unknown_model
from edge.openai.errors import OpenAIError, internal_error, overloaded
from edge.openai.errors.http import method_not_allowed, unknown_path
from edge.openai.rate_limits import rate_limit_headers
from edge.state import REQUEST_ID
from edge.upstream.router import ModelNotFoundError, NoReplicaError

log = logging.getLogger(__name__)


def error_response(error: OpenAIError) -> web.Response:
    """The response to a failed request, with retry and rate-limit headers."""
    return web.Response(
        status=error.status,
        body=error.body(),
        content_type="application/json",
        headers=error.headers() | rate_limit_headers(error.rate_limits),
    )


def failure_response(request: web.Request, failure: Exception) -> web.Response:
    """Makes the response to an exception of a handler; an unforeseen one is logged, and a 500.

    Raises:
        ConnectionError: The client has disconnected, or a part of a response is already sent.
    """
    match failure:
        case ModelNotFoundError(args=(name,)):
            response = error_response(OpenAIError.of(unknown_model(name)))
        case NoReplicaError():
            response = error_response(overloaded())
        case OpenAIError():
            response = error_response(failure)
        case web.HTTPMethodNotAllowed():
            response = error_response(method_not_allowed(request.method, request.path))
            response.headers["allow"] = ", ".join(sorted(failure.allowed_methods))
        case web.HTTPNotFound():
            response = error_response(unknown_path(request.method, request.path))
        case ConnectionError():
            # The client has disconnected, or the edge has dropped it.
            raise failure
        case _:
            log.error("request %s failed", request[REQUEST_ID], exc_info=failure)
            if request.writer.output_size:
                raise ConnectionError(
                    "a response was interrupted; another cannot follow it"
                ) from None
            response = error_response(internal_error())
    if not request.content.is_eof():
        # Close the connection after the response instead of reading the rest of the body.
        response.force_close()
    return response
