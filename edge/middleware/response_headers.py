"""x-request-id and the other headers that every answer carries."""

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
    """An id like OpenAI's."""
    return f"req_{os.urandom(16).hex()}"


def take_request_id(request: web.Request) -> None:
    """Takes the caller's id where it is well-formed, and the time."""
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
    """Signal handler: runs when the headers of any answer, streams too, are about to leave."""
    response.headers.update(common_headers(request))
    if request.app[EDGE].draining:
        # The listener is closing: a connection that stays open would keep the edge from idling.
        response.headers["connection"] = "close"
        response.force_close()
