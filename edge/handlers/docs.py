"""GET /openapi.json, and GET /docs, the page that shows it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from aiohttp import ETag, web

from edge.state import EDGE

_WEB: Final = Path(__file__).parents[1] / "web"
_PAGE: Final = "docs.html"
# Nothing else of the folder is served.
_CONTENT_TYPES: Final = {
    _PAGE: "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
_HEADERS: Final = {
    # Asked for again each time, and answered with 304.
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def openapi(request: web.Request) -> web.Response:
    """The document, as this edge is configured."""
    edge = request.app[EDGE]
    ignore_unknown = edge.config.unknown_members == "ignore"
    document = _document(ignore_unknown=ignore_unknown, keyed=edge.keys is not None)
    return _answer(request, document, "application/json")


async def docs(request: web.Request) -> web.Response:
    """The page."""
    return _answer(request, _file(_PAGE), _CONTENT_TYPES[_PAGE])


async def docs_asset(request: web.Request) -> web.Response:
    """A file of the page."""
    name = request.match_info["asset"]
    if name not in _CONTENT_TYPES:
        raise web.HTTPNotFound
    return _answer(request, _file(name), _CONTENT_TYPES[name])


@cache
def _document(*, ignore_unknown: bool, keyed: bool) -> bytes:
    # Not at the top: most edges are never asked.
    from edge.openapi.document import openapi_document

    return openapi_document(
        version=metadata.version("isthmus"), ignore_unknown=ignore_unknown, keyed=keyed
    )


@cache
def _file(name: str) -> bytes:
    return (_WEB / name).read_bytes()


def _answer(request: web.Request, body: bytes, content_type: str) -> web.Response:
    tag = ETag(hashlib.sha256(body).hexdigest()[:32])
    known = request.if_none_match or ()
    if any(other.value in (tag.value, "*") for other in known):
        answer = web.Response(status=304, headers=_HEADERS)
    else:
        answer = web.Response(body=body, headers={"content-type": content_type, **_HEADERS})
    answer.etag = tag
    return answer
