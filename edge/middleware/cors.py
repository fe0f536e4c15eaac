"""Lets web pages of configured origins call the API. Without origins none of this is installed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

_METHODS: Final = "GET, HEAD, POST"
_EXPOSED: Final = ", ".join(
    (
        "x-request-id",
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
# Browsers remember less than this anyway.
_PREFLIGHT_LASTS_SECONDS: Final = 24 * 3600
_HEADER_NAMES: Final = re.compile(r"[\w!#$%&'*+.^`|~, -]{1,2048}", re.ASCII)


def preflight_answer(request: web.Request) -> web.Response | None:
    """The answer to a browser that asks whether it may call; None where none asks.

    It asks without a key whether it may send one; the call itself needs it.
    """
    wanted = request.headers.get("access-control-request-method")
    if request.method != "OPTIONS" or wanted is None or "origin" not in request.headers:
        return None
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": str(_PREFLIGHT_LASTS_SECONDS),
    }
    names = request.headers.get("access-control-request-headers", "")
    if _HEADER_NAMES.fullmatch(names):
        # SDKs send headers of their own, new ones with every version.
        headers["access-control-allow-headers"] = names
    return web.Response(status=204, headers=headers)


def allow_origins(
    origins: tuple[str, ...],
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Makes the signal handler that names the allowed origin on answers, errors and streams.

    Args:
        origins: As browsers write them ("https://example.org"), or "*" for all.
    """

    async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        origin = request.headers.get("origin")
        if "*" in origins:
            headers["access-control-allow-origin"] = "*"
        else:
            # What a cache keeps for one origin is not for another.
            headers.add("vary", "Origin")
            if origin not in origins:
                return
            headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = _EXPOSED

    return add_cors_headers
