"""Answers that are one JSON document, complete when they leave.

Nearly all of them go to a client that keeps its connection. For those, head and body are one piece
of bytes: aiohttp's own way through a multidict and signals costs as much as making the document.
"""

from __future__ import annotations

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from edge.middleware.response_headers import answer_headers
from edge.state import EDGE


def json_answer(request: web.Request, document: bytes) -> web.StreamResponse:
    """A 200 to a POST, to be returned at once."""
    edge = request.app[EDGE]
    if (
        request.version != HttpVersion11
        or not request.keep_alive
        or edge.draining
        or edge.config.cors_origins
    ):
        return web.Response(body=document, content_type="application/json")
    lines = [f"{name}: {value}\r\n" for name, value in answer_headers(request).items()]
    head = (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(document)}\r\n"
        f"Date: {rfc822_formatted_time()}\r\n"
        f"{''.join(lines)}\r\n"
    )
    return _WholeAnswer(head.encode() + document)


class _WholeAnswer(web.StreamResponse):
    """An answer whose head is rendered already."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Sends all of it."""
        if not self._eof_sent:
            self._eof_sent = True
            await request.writer.write(self._data)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left."""
