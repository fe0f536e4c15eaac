"""Every failure leaves as OpenAI's error object, whatever raised it."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from edge.openai.errors import OpenAIError, internal_error
from edge.openai.http_errors import method_not_allowed, unknown_path
from edge.state import REQUEST_ID

log = logging.getLogger(__name__)


def error_response(error: OpenAIError) -> web.Response:
    """The error as an answer."""
    return web.Response(
        status=error.status,
        body=error.body(),
        content_type="application/json",
        headers=error.headers(),
    )


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Renders OpenAIError; unknown paths and methods; and, for anything else, a 500."""
    allow: str | None = None
    try:
        return await handler(request)
    except OpenAIError as raised:
        error = raised
    except web.HTTPMethodNotAllowed as raised:
        error = method_not_allowed(request.method, request.path)
        allow = ", ".join(sorted(raised.allowed_methods))
    except web.HTTPNotFound:
        error = unknown_path(request.method, request.path)
    except ConnectionError:
        # The client is gone, or was dropped: nobody is left to answer.
        raise
    except Exception:
        log.exception("request %s failed", request[REQUEST_ID])
        if request.writer.output_size:
            raise ConnectionError("half an answer is out; nothing can follow it") from None
        error = internal_error()
    response = error_response(error)
    if allow is not None:
        response.headers["allow"] = allow
    if not request.content.is_eof():
        # What is left of the body is not worth reading: the connection ends with the answer.
        response.force_close()
    return response
