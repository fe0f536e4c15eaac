"""GET /openapi.json, and GET /docs, the page that renders it."""

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
# Content types by file name; other files of the folder are not served.
_CONTENT_TYPES: Final = {
    _PAGE: "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
_HEADERS: Final = {
    # Browsers revalidate on each visit and usually get a 304.
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json: the document for this edge's configuration."""
    edge = request.app[EDGE]
    ignore_unknown = edge.config.unknown_members == "ignore"
    document = _document(ignore_unknown=ignore_unknown, keyed=edge.keys is not None)
    return _cacheable(request, document, "application/json")


async def docs(request: web.Request) -> web.Response:
    """GET /docs: the HTML page that renders the document."""
    return _cacheable(request, _file(_PAGE), _CONTENT_TYPES[_PAGE])


async def docs_asset(request: web.Request) -> web.Response:
    """GET /docs/{asset}: a script or style sheet of the page.

    Raises:
        HTTPNotFound: There is no such file.
    """
    name = request.match_info["asset"]
    if name not in _CONTENT_TYPES:
        raise web.HTTPNotFound
    return _cacheable(request, _file(name), _CONTENT_TYPES[name])


@cache
def _document(*, ignore_unknown: bool, keyed: bool) -> bytes:
    # Imported here because most edge processes never serve the document.
    from edge.openapi.document import openapi_document

    return openapi_document(
        version=metadata.version("isthmus"), ignore_unknown=ignore_unknown, keyed=keyed
    )


@cache
def _file(name: str) -> bytes:
    return (_WEB / name).read_bytes()


def _cacheable(request: web.Request, body: bytes, content_type: str) -> web.Response:
    """The body with an ETag, or a 304 if the client already has it."""
    tag = ETag(hashlib.sha256(body).hexdigest()[:32])
    known = request.if_none_match or ()
    if any(other.value in (tag.value, "*") for other in known):
        response = web.Response(status=304, headers=_HEADERS)
    else:
        response = web.Response(body=body, headers={"content-type": content_type, **_HEADERS})
    response.etag = tag
    return response
