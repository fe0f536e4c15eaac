"""CORS headers for web pages of the configured origins. Without origins they are never sent."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

_METHODS: Final = "GET, HEAD, POST, DELETE"
_EXPOSED: Final = ", ".join(
    (
        "x-request-id",
        "request-id",
        "openai-processing-ms",
        "openai-version",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        *(
            f"x-ratelimit-{what}-{kind}"
            for what in ("limit", "remaining", "reset")
            for kind in ("requests", "tokens")
        ),
    )
)
# How long a browser may reuse a preflight's response; browsers cap it at a day or less.
_PREFLIGHT_SECONDS: Final = 24 * 3600
_HEADER_NAMES: Final = re.compile(r"[\w!#$%&'*+.^`|~, -]{1,2048}", re.ASCII)


def preflight_response(request: web.Request) -> web.Response | None:
    """The response to a CORS preflight; None for any other request.

    Browsers send preflights without a key. The request that follows needs one.
    """
    wanted = request.headers.get("access-control-request-method")
    if request.method != "OPTIONS" or wanted is None or "origin" not in request.headers:
        return None
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": str(_PREFLIGHT_SECONDS),
    }
    names = request.headers.get("access-control-request-headers", "")
    if _HEADER_NAMES.fullmatch(names):
        # Any header is allowed: SDKs send headers of their own, and more with each version.
        headers["access-control-allow-headers"] = names
    return web.Response(status=204, headers=headers)


def allow_origins(
    origins: tuple[str, ...],
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Makes the `on_response_prepare` handler that adds CORS headers to every response.

    Args:
        origins: Allowed origins as browsers send them ("https://example.org"), or "*" for all.
    """

    async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        origin = request.headers.get("origin")
        if "*" in origins:
            headers["access-control-allow-origin"] = "*"
        else:
            # Caches must not reuse the response for another origin.
            headers.add("vary", "Origin")
            if origin not in origins:
                return
            headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = _EXPOSED

    return add_cors_headers
