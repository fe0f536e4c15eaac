"""API keys: every route requires one unless it is listed here.

The matched route decides, never the text of the path or the Host header. An unknown path is a 404
with or without a key; on a known path the key is checked before the method.

A key comes as `authorization: Bearer KEY` or, as Anthropic's SDKs send it, as `x-api-key: KEY`. Of
two, the first is read: clients send both if a key of Anthropic's is left in their environment.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from aiohttp import web

from edge.handlers.metrics import is_own_socket
from edge.openai.errors import http as http_errors
from edge.state import EdgeRequest
from keys import KeyStore, WrongKeys

OPEN_ROUTES: Final = frozenset(
    {
        "/",
        "/page/{asset}",
        "/health",
        "/ready",
        "/ping",
        "/openapi.json",
        "/docs",
        "/docs/{asset}",
        "/files/{name}",
    }
)
METRICS: Final = "/metrics"


def check_key(request: EdgeRequest, path: str, keys: KeyStore, wrong_keys: WrongKeys) -> None:
    """Checks the request's key and stores its id in `request.principal`.

    `path` is that of the request's route.

    Requests to open routes pass without a key, and a key that they carry is not read.

    Raises:
        OpenAIError: 401, the key is absent or unknown; 403, it lacks the scope `api`; 429, it is
            unknown, and so were many from this address. A key of scope `metrics` is enough for
            /metrics.
    """
    if _is_open(request, path):
        return
    key = _key(request)
    if not key:
        raise http_errors.missing_api_key()
    principal = keys.check(key)
    if principal is None:
        if wait := wrong_keys.note(request.remote or ""):
            raise http_errors.too_many_wrong_keys(ceil(wait * 1000))
        raise http_errors.invalid_api_key()
    if "api" not in principal.scopes and (path != METRICS or "metrics" not in principal.scopes):
        raise http_errors.insufficient_scope()
    request.principal = principal.id


def _key(request: EdgeRequest) -> str:
    """The key that a request carries; "" if it has none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (key := key.strip()):
        return key
    return request.headers.get("x-api-key", "").strip()


def _is_open(request: EdgeRequest, path: str) -> bool:
    if not path:
        return isinstance(request.match_info.http_exception, web.HTTPNotFound)
    if path == METRICS:
        return request.edge.config.metrics_open or is_own_socket(request)
    return path in OPEN_ROUTES


def route_path(request: EdgeRequest) -> str:
    """The template of the request's route; "" for an unknown path and for a wrong method."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
