"""What every request meets around its handler, in this order.

One function, not a chain of aiohttp's middlewares: each of those is one more coroutine that a
request and all its wake-ups pass through.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from edge.middleware.auth import check_key
from edge.middleware.cors import preflight_answer
from edge.middleware.errors import failure_response
from edge.middleware.response_headers import take_request_id
from edge.state import EDGE


@web.middleware
async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Names and counts the request, checks its key, runs its handler and renders its failure."""
    edge = request.app[EDGE]
    take_request_id(request)
    edge.requests += 1
    edge.idle.clear()
    try:
        if edge.config.cors_origins and (answer := preflight_answer(request)) is not None:
            return answer
        if edge.keys is not None:
            check_key(request, edge.keys)
        return await handler(request)
    except Exception as failure:
        return failure_response(request, failure)
    finally:
        edge.requests -= 1
        if not edge.requests:
            edge.idle.set()
