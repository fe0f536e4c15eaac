"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Final

from aiohttp import web

from contract.memory import Holding
from contract.refusals import missing_model, not_an_embedding_model
from edge.exchange import runner
from edge.exchange.json_response import json_response
from edge.exchange.machine import Exchange
from edge.handlers.request import call_options, read_body
from edge.middleware.serve import rate_limit_headers
from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.embeddings.response import EmbeddingsResponse
from edge.openai.errors import OpenAIError
from edge.state import Edge, EdgeRequest
from isthmus.v1.models_pb2 import ModelKind

# Up to this many numbers are rendered without a pause, in well under a millisecond.
_FEW_NUMBERS: Final = 16 * 1024


async def create_embeddings(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/embeddings."""
    edge = request.edge
    parsed = parse_embeddings_request(
        await read_body(request), ignore_unknown=edge.config.ignore_unknown
    )
    model = parsed.model or edge.router.default_model(ModelKind.MODEL_KIND_EMBEDDING)
    if not model:
        raise OpenAIError.of(missing_model())
    found = edge.router.find(model)
    if found.kind != ModelKind.MODEL_KIND_EMBEDDING:
        raise OpenAIError.of(not_an_embedding_model())
    # Counted now: an engine makes many matrices at once, and gRPC receives them before we see any.
    most = found.embedding.dimensions
    columns = min(parsed.request.dimensions or most, most)
    request.connection.holding.take(4 * columns * len(parsed.request.inputs))
    parsed.request.model = model
    translator = EmbeddingsResponse(parsed, model)
    exchange = Exchange(translator, names=parsed.other_names)
    options = call_options(request)
    await runner.collect(request, exchange, [parsed.request], options, counted=True)
    if parsed.encoding_format == "float" and "numpy" not in sys.modules:
        await asyncio.to_thread(importlib.import_module, "numpy")
    pieces = translator.document()
    if translator.numbers <= _FEW_NUMBERS:
        return json_response(request, b"".join(pieces), exchange.rate_limits)
    rendered = await _render(edge, pieces, request.connection.holding)
    headers = rate_limit_headers(exchange.rate_limits)
    headers["content-length"] = str(sum(map(len, rendered)))
    return web.Response(body=_each(rendered), headers=headers, content_type="application/json")


async def _render(edge: Edge, pieces: Iterator[bytes], holding: Holding) -> list[bytes]:
    """Renders one piece in each turn of the event loop; large responses take turns.

    Raises:
        MemorySpentError: The memory budget has no room for all of them.
    """
    rendered: list[bytes] = []
    while True:
        async with edge.rendering:
            piece = next(pieces, None)
            if piece is None:
                return rendered
            holding.add(len(piece))
            rendered.append(piece)
            await asyncio.sleep(0)


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    # Each piece is written alone: joining megabytes would copy them twice more.
    for piece in pieces:
        yield piece
