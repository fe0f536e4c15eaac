"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from edge.openai.errors import unknown_model_path
from edge.openai.models import model_object, models_list
from edge.state import EDGE
from edge.upstream.router import ModelNotFoundError, NoReplicaError


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: all ids and aliases.

    Raises:
        NoReplicaError: No upstream has listed its models yet.
    """
    models = request.app[EDGE].router.models()
    if not models:
        raise NoReplicaError
    return web.Response(body=models_list(models), content_type="application/json")


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one id or alias; slashes in it may be percent-encoded.

    Raises:
        OpenAIError: 404, no model has this name.
        NoReplicaError: Perhaps an upstream has it that has not listed its models yet.
    """
    name = request.match_info["id"]
    try:
        model = request.app[EDGE].router.find(name)
    except ModelNotFoundError:
        raise unknown_model_path(name) from None
    return web.Response(body=model_object(model, name), content_type="application/json")
