"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from edge.openai.errors import unknown_model_path
from edge.openai.models import model_object, models_list
from edge.state import EDGE
from edge.upstream.replica import names_of


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: all ids and aliases."""
    models = request.app[EDGE].router.models()
    return web.Response(body=models_list(models), content_type="application/json")


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one id or alias; slashes in it may be percent-encoded.

    Raises:
        OpenAIError: 404, no model has this name.
    """
    name = request.match_info["id"]
    for model in request.app[EDGE].router.models():
        if name in names_of(model):
            return web.Response(body=model_object(model, name), content_type="application/json")
    raise unknown_model_path(name)
