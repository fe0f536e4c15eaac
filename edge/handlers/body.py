"""Reads a request's body within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from aiohttp import web

from edge.openai.errors import http as http_errors
from edge.state import EDGE

T = TypeVar("T", bytes, bytearray)

# A body's time is `body_seconds` plus its size divided by this.
SLOWEST_BYTES_PER_SECOND: Final = 16 * 1024


async def read_body(request: web.Request) -> bytes:
    """The whole body of a JSON request.

    Raises:
        OpenAIError: 400 (content type, framing, or too slow), 413 or 415.
    """
    config = request.app[EDGE].config
    given = request.headers.get("content-type", "")
    # Most clients send exactly this, which spares parsing the header.
    if given != "application/json" and request.content_type != "application/json":
        raise http_errors.unsupported_content_type(given)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise http_errors.unsupported_content_encoding(encoding)
    try:
        if request.content.is_eof():
            # A small body arrives together with the head, so there is nothing to wait for.
            return _bounded(request.content.read_nowait(), config.max_body_bytes)
        if (request.content_length or 0) > config.max_body_bytes:
            raise http_errors.body_too_large(config.max_body_bytes)
        body = bytearray()
        async with asyncio.timeout(config.body_seconds) as limit:
            while chunk := await request.content.readany():
                body += chunk
                _bounded(body, config.max_body_bytes)
                if (when := limit.when()) is not None:
                    limit.reschedule(when + len(chunk) / SLOWEST_BYTES_PER_SECOND)
    except web.RequestPayloadError as error:
        raise http_errors.malformed_request() from error
    except TimeoutError as error:
        raise http_errors.body_timeout() from error
    return bytes(body)


def _bounded(body: T, limit_bytes: int) -> T:
    if len(body) > limit_bytes:
        raise http_errors.body_too_large(limit_bytes)
    return body
