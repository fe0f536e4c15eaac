"""GET /, the page for people; GET /openapi.json, and GET /docs, the page that renders it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

from aiohttp import ETag, web

from edge.state import EdgeRequest

_WEB: Final = Path(__file__).parents[1] / "web"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Everything that is served, by its path in the folder.
_FILES: Final = {
    path.relative_to(_WEB).as_posix(): path for path in _WEB.rglob("*") if path.suffix in _TYPES
}
_HEADERS: Final = {
    # Browsers revalidate on each visit and usually get a 304.
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def openapi(request: EdgeRequest) -> web.Response:
    """GET /openapi.json: the document for this edge's configuration."""
    edge = request.edge
    document = _document(ignore_unknown=edge.config.ignore_unknown, keyed=edge.keys is not None)
    return _cacheable(request, document, "application/json")


async def page(request: EdgeRequest) -> web.Response:
    """GET /: the page that tries the models in a browser."""
    return _file(request, "index.html")


async def page_asset(request: EdgeRequest) -> web.Response:
    """GET /page/{asset}: a script, the style sheet or the icon of the page."""
    return _file(request, f"page/{request.match_info['asset']}")


async def docs(request: EdgeRequest) -> web.Response:
    """GET /docs: the page that renders the document."""
    return _file(request, "docs.html")


async def docs_asset(request: EdgeRequest) -> web.Response:
    """GET /docs/{asset}: the script or the style sheet of /docs."""
    return _file(request, f"docs/{request.match_info['asset']}")


@cache
def _document(*, ignore_unknown: bool, keyed: bool) -> bytes:
    # Imported here because most edge processes never serve the document.
    from edge.openapi.document import openapi_document

    return openapi_document(
        version=metadata.version("isthmus"), ignore_unknown=ignore_unknown, keyed=keyed
    )


def _file(request: EdgeRequest, name: str) -> web.Response:
    """A file of the folder; HTTPNotFound if there is none."""
    if name not in _FILES:
        raise web.HTTPNotFound
    return _cacheable(request, _bytes(name), _TYPES[_FILES[name].suffix])


@cache
def _bytes(name: str) -> bytes:
    return _FILES[name].read_bytes()


def _cacheable(request: EdgeRequest, body: bytes, content_type: str) -> web.Response:
    """The body with an ETag, or a 304 if the client already has it."""
    tag = ETag(hashlib.sha256(body).hexdigest()[:32])
    known = request.if_none_match or ()
    if any(other.value in (tag.value, "*") for other in known):
        response = web.Response(status=304, headers=_HEADERS)
    else:
        response = web.Response(body=body, headers={"content-type": content_type, **_HEADERS})
    response.etag = tag
    return response
