"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from edge.handlers.body import read_body
from edge.handlers.call_options import call_options
from edge.openai.embeddings import embeddings_answer, parse_embeddings_request
from edge.openai.errors import missing_model, not_an_embedding_model
from edge.openai.rpc_status import from_rpc_status
from edge.state import EDGE, RATE_LIMITS
from edge.upstream.router import UpstreamError
from isthmus.v1.models_pb2 import ModelKind

# Rendering this much as decimal numbers would hold up every other request for milliseconds.
LARGE_MATRIX_BYTES: Final = 64 * 1024


async def create_embeddings(request: web.Request) -> web.Response:
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
    if call.encoding_format == "float" and len(response.vectors) > LARGE_MATRIX_BYTES:
        answer = await asyncio.to_thread(embeddings_answer, call, response, model)
    else:
        answer = embeddings_answer(call, response, model)
    return web.Response(body=answer, content_type="application/json")
