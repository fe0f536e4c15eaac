"""GET /v1/models and GET /v1/models/{id}, in OpenAI's form or Anthropic's."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import Struct

from edge.anthropic.errors import is_anthropic
from edge.anthropic.models import model_info, model_page
from edge.openai.errors import unknown_model_path
from edge.openai.models import model_object, models_list
from edge.state import EdgeRequest
from edge.upstream.router import ModelNotFoundError, NoReplicaError


async def list_models(request: EdgeRequest) -> web.Response:
    """GET /v1/models: all ids and aliases.

    Raises:
        NoReplicaError: No upstream has listed its models yet.
    """
    models = request.edge.router.models()
    if not models:
        raise NoReplicaError
    listed = models_list(models)
    return _response(model_page(listed) if _for_anthropic(request) else listed)


async def retrieve_model(request: EdgeRequest) -> web.Response:
    """GET /v1/models/{id}: one id or alias; slashes in it may be percent-encoded.

    Raises:
        OpenAIError: 404, no model has this name.
        NoReplicaError: Perhaps an upstream has it that has not listed its models yet.
    """
    name = request.match_info["id"]
    try:
        model = request.edge.router.find(name)
    except ModelNotFoundError:
        raise unknown_model_path(name) from None
    described = model_object(model, name)
    return _response(model_info(described) if _for_anthropic(request) else described)


def _for_anthropic(request: web.Request) -> bool:
    return is_anthropic(request.path, request.headers)


def _response(document: Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
