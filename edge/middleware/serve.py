"""The middleware: everything that happens before and after a handler, in its order.

It is one function instead of a chain of aiohttp middlewares. Each of those would be one more
coroutine frame in every request, which all wake-ups of its task pass.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from edge.middleware.auth import check_key
from edge.middleware.cors import preflight_response
from edge.middleware.errors import failure_response
from edge.middleware.response_headers import take_request_id
from edge.state import EDGE


@web.middleware
async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assigns the id, counts the request, checks its key, runs its handler, renders its failure."""
    edge = request.app[EDGE]
    take_request_id(request)
    edge.requests += 1
    edge.idle.clear()
    try:
        if edge.config.cors_origins and (response := preflight_response(request)) is not None:
            return response
        if edge.keys is not None:
            check_key(request, edge.keys)
        return await handler(request)
    except Exception as failure:
        return failure_response(request, failure)
    finally:
        edge.requests -= 1
        if not edge.requests:
            edge.idle.set()
