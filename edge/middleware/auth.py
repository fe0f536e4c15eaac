"""API keys: every route needs one unless it is listed here.

The decision hangs on the matched route, never on the text of the path or the Host header. An
unknown path is a 404 with or without a key; a known path checks the key before the method.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from edge.openai.errors import http as http_errors
from edge.state import PRINCIPAL
from keys import KeyStore

OPEN_ROUTES: Final = frozenset(
    {"/health", "/ready", "/openapi.json", "/docs", "/docs/{asset}", "/files/{name}"}
)


def check_key(request: web.Request, keys: KeyStore) -> None:
    """Lets a request with a known key, or to an open route, through.

    Raises:
        OpenAIError: 401 or 403.
    """
    if _is_open(request):
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise http_errors.missing_api_key()
    principal = keys.check(key)
    if principal is None:
        raise http_errors.invalid_api_key()
    if "api" not in principal.scopes:
        raise http_errors.insufficient_scope()
    request[PRINCIPAL] = principal.id


def _is_open(request: web.Request) -> bool:
    exception = request.match_info.http_exception
    if exception is not None:
        return isinstance(exception, web.HTTPNotFound)
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in OPEN_ROUTES
