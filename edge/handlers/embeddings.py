"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

from aiohttp import web

from edge.handlers.body import read_body
from edge.handlers.call_options import call_options
from edge.handlers.json_answer import json_answer
from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.embeddings.response import embeddings_response
from edge.openai.errors import missing_model, not_an_embedding_model
from edge.openai.errors.rpc_status import from_rpc_status
from edge.state import EDGE, RATE_LIMITS, Edge
from edge.upstream.router import UpstreamError
from isthmus.v1.models_pb2 import ModelKind

# Rendered in well under a millisecond, even as decimal numbers.
_FEW_NUMBERS: Final = 16 * 1024


async def create_embeddings(request: web.Request) -> web.StreamResponse:
    """Embeds the inputs of one request."""
    edge = request.app[EDGE]
    body = await read_body(request)
    call = parse_embeddings_request(body, ignore_unknown=edge.config.unknown_members == "ignore")
    model = call.model or edge.router.default_model(ModelKind.MODEL_KIND_EMBEDDING)
    if not model:
        raise missing_model()
    if edge.router.find(model).kind != ModelKind.MODEL_KIND_EMBEDDING:
        raise not_an_embedding_model()
    call.request.model = model
    try:
        response = await edge.router.embed(call.request, call_options(request))
    except UpstreamError as failed:
        error = from_rpc_status(failed.status, admitted=False)
        request[RATE_LIMITS] = error.rate_limits
        raise error from failed
    request[RATE_LIMITS] = response.rate_limits
    if call.encoding_format == "float" and "numpy" not in sys.modules:
        await asyncio.to_thread(importlib.import_module, "numpy")
    pieces = embeddings_response(call, response, model)
    if len(call.request.inputs) * response.dimensions <= _FEW_NUMBERS:
        return json_answer(request, b"".join(pieces))
    rendered = await _render(edge, pieces)
    return web.Response(
        body=_each(rendered),
        headers={"content-length": str(sum(map(len, rendered)))},
        content_type="application/json",
    )


async def _render(edge: Edge, pieces: Iterator[bytes]) -> list[bytes]:
    """Everything else has its turn after each piece, and large answers take turns."""
    rendered: list[bytes] = []
    while True:
        async with edge.rendering:
            piece = next(pieces, None)
            if piece is None:
                return rendered
            rendered.append(piece)
            await asyncio.sleep(0)


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    # One by one into the socket: joined, megabytes would be copied twice more.
    for piece in pieces:
        yield piece
