"""Responses that are one JSON document, complete before the first byte is sent.

Nearly all of them go to a client that keeps its connection. For those, head and body are one
bytes object: aiohttp's own path through a multidict and signals costs as much as rendering the
document.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from contract.memory import SMALL_BYTES
from edge.middleware.serve import common_lines, rate_limit_headers
from edge.state import EdgeRequest
from isthmus.v1.usage_pb2 import RateLimits

# Bytes of a document that are written at once. A transport in TLS takes a write of any size and
# does not pause; between several writes it does, which bounds a slow client (client_bounds.py).
_WRITE_BYTES: Final = 256 * 1024
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def json_response(
    request: EdgeRequest, document: bytes, rate_limits: RateLimits
) -> web.StreamResponse:
    """The 200 response to a POST; the handler must return it without delay.

    Raises:
        MemorySpentError: The memory budget has no room for it.
    """
    edge = request.edge
    limits = rate_limit_headers(rate_limits)
    if (
        len(document) > SMALL_BYTES
        or request.version != HttpVersion11
        or not request.keep_alive
        or edge.draining
        or edge.config.cors_origins
    ):
        return document_response(request, document, limits)
    lines = "".join([f"{name}: {value}\r\n" for name, value in limits.items()]) if limits else ""
    head = (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(document)}\r\n"
        f"Date: {rfc822_formatted_time()}\r\n"
        f"{common_lines(request)}{lines}\r\n"
    )
    return _RenderedResponse(head.encode() + document)


def document_response(
    request: EdgeRequest, document: bytes, headers: Mapping[str, str] = _NO_HEADERS
) -> web.StreamResponse:
    """The 200 response to a request of any method; the handler must return it without delay.

    Raises:
        MemorySpentError: The memory budget has no room for it.
    """
    if len(document) > SMALL_BYTES:
        request.connection.holding.add(len(document))
    body: bytes | AsyncIterator[memoryview] = document
    if len(document) > _WRITE_BYTES:
        headers = {**headers, "content-length": str(len(document))}
        body = _parts(document)
    return web.Response(body=body, content_type="application/json", headers=headers)


class _RenderedResponse(web.StreamResponse):
    """A response whose head is already rendered: it has no headers or state of aiohttp's."""

    _keep_alive = True
    _status = 200

    def __init__(self, data: bytes) -> None:  # super().__init__() costs as much as the rendering.
        self._data = data

    async def prepare(self, request: web.BaseRequest) -> None:
        """Sends the head and the body."""
        if not self._eof_sent:
            self._eof_sent = True
            await request.writer.write(self._data)

    async def write_eof(self, data: bytes = b"") -> None:
        """Does nothing: `prepare` has sent the body."""


async def _parts(document: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(document)
    for start in range(0, len(document), _WRITE_BYTES):
        yield view[start : start + _WRITE_BYTES]
