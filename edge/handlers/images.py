"""POST /v1/images/generations: images in one document, by URL, or streamed with previews."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from contract.refusals import missing_model, not_an_image_model
from edge.exchange import runner
from edge.exchange.machine import Exchange
from edge.handlers.files import files_url
from edge.handlers.request import call_options, read_body
from edge.middleware.serve import rate_limit_headers
from edge.openai.errors import OpenAIError
from edge.openai.errors.http import files_unavailable
from edge.openai.images.request import parse_image_request
from edge.openai.images.response import ImageResponse
from edge.openai.images.stream import ImageStream
from edge.openai.pieces import Piece, encoded
from edge.state import EdgeRequest
from isthmus.v1.models_pb2 import ModelKind

log = logging.getLogger(__name__)


async def create_images(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/images/generations."""
    edge = request.edge
    parsed = parse_image_request(
        await read_body(request), ignore_unknown=edge.config.ignore_unknown
    )
    name = parsed.request.model or edge.router.default_model(ModelKind.MODEL_KIND_IMAGE)
    if not name:
        raise OpenAIError.of(missing_model())
    model = edge.router.find(name)
    if model.kind != ModelKind.MODEL_KIND_IMAGE:
        raise OpenAIError.of(not_an_image_model())
    parsed.set_model(name, model.image)
    base_url = files_url(request) if parsed.wants_urls else None
    if base_url is not None:
        with _storage_errors():
            await edge.files.prepare()
    options, created = call_options(request), int(time.time())
    if parsed.stream:
        exchange = Exchange(ImageStream(parsed, created))
        return await runner.stream(request, exchange, [parsed.request], options)
    translator = ImageResponse(parsed, created)
    exchange = Exchange(translator)
    await runner.collect(request, exchange, [parsed.request], options)
    urls = None
    if base_url is not None:
        extension = parsed.output_format.replace("jpeg", "jpg")
        with _storage_errors():
            names = await edge.files.keep(translator.files(), extension)
        urls = [base_url + name for name in names]
    headers = rate_limit_headers(exchange.rate_limits)
    return await _send(request, translator.document(urls), headers)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("cannot store images: %s", error)
        raise files_unavailable() from error


async def _send(
    request: EdgeRequest, document: list[Piece], headers: dict[str, str]
) -> web.StreamResponse:
    headers["content-type"] = "application/json"
    response = web.StreamResponse(headers=headers)
    response.content_length = sum(map(len, document))
    await response.prepare(request)
    for data in encoded(document):
        await response.write(data)
        # A fast client never makes the write wait, so let other requests run here.
        await asyncio.sleep(0)
    await response.write_eof()
    return response
