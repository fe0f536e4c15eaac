"""x-request-id and the other headers that every response carries."""

from __future__ import annotations

import os
import re
import time
from typing import Final

from aiohttp import web

from edge.state import EDGE, REQUEST_ID

SERVER: Final = "isthmus"

_REQUEST_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_STARTED = web.RequestKey("started", float)


def new_request_id() -> str:
    """A random id in OpenAI's form, `req_` and 32 hexadecimal digits."""
    return f"req_{os.urandom(16).hex()}"


def take_request_id(request: web.Request) -> None:
    """Stores the request's id (the caller's x-request-id if it is well-formed) and its start."""
    given = request.headers.get("x-request-id")
    if given is None or not _REQUEST_ID.fullmatch(given):
        given = new_request_id()
    request[REQUEST_ID] = given
    request[_STARTED] = time.monotonic()


def common_headers(request: web.Request) -> dict[str, str]:
    """The headers that every response to a request carries."""
    headers = {
        "server": SERVER,
        "x-request-id": request.get(REQUEST_ID) or new_request_id(),
        "access-control-expose-headers": "X-Request-ID",
    }
    if request.method == "POST" and (started := request.get(_STARTED)) is not None:
        headers["openai-version"] = "2020-10-01"
        headers["openai-processing-ms"] = str(int((time.monotonic() - started) * 1000))
    return headers


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The `on_response_prepare` handler: adds the common headers to responses and streams."""
    response.headers.update(common_headers(request))
    if request.app[EDGE].draining:
        # During a stop, close keep-alive connections: their clients would send more requests.
        response.headers["connection"] = "close"
        response.force_close()
