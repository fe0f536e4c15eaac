"""x-request-id and the other headers that every answer carries."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from edge.openai.rate_limits import rate_limit_headers
from edge.state import EDGE, RATE_LIMITS, REQUEST_ID

SERVER: Final = "isthmus"

_REQUEST_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_STARTED = web.RequestKey("started", float)


def new_request_id() -> str:
    """An id like OpenAI's."""
    return f"req_{secrets.token_hex(16)}"


@web.middleware
async def request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Takes the caller's id where it is well-formed, and counts requests in flight."""
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else new_request_id()
    request[_STARTED] = time.monotonic()
    edge = request.app[EDGE]
    edge.requests += 1
    edge.idle.clear()
    try:
        return await handler(request)
    finally:
        edge.requests -= 1
        if not edge.requests:
            edge.idle.set()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: runs when the headers of any answer, streams too, are about to leave."""
    headers = response.headers
    headers["x-request-id"] = request.get(REQUEST_ID) or new_request_id()
    headers["access-control-expose-headers"] = "X-Request-ID"
    headers["server"] = SERVER
    if request.app[EDGE].draining:
        # The listener is closing: a connection that stays open would keep the edge from idling.
        headers["connection"] = "close"
        response.force_close()
    if request.method == "POST" and (started := request.get(_STARTED)) is not None:
        headers["openai-version"] = "2020-10-01"
        headers["openai-processing-ms"] = str(int((time.monotonic() - started) * 1000))
    if (limits := request.get(RATE_LIMITS)) is not None:
        headers.update(rate_limit_headers(limits))
