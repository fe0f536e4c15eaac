"""GET /health (is the process up) and GET /ready (would a request be served)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from edge.openapi.responses import Health, Readiness
from edge.state import EDGE


async def health(_: web.Request) -> web.Response:
    """200 as long as the process answers at all."""
    return web.Response(body=msgspec.json.encode(Health()), content_type="application/json")


async def ready(request: web.Request) -> web.Response:
    """200 while every upstream has a replica that serves and the edge does not drain."""
    edge = request.app[EDGE]
    upstreams = {upstream.target: upstream.serving for upstream in edge.router.upstreams}
    is_ready = edge.router.ready() and not edge.draining
    status = "draining" if edge.draining else "ready" if is_ready else "waiting for upstreams"
    return web.Response(
        status=200 if is_ready else 503,
        body=msgspec.json.encode(Readiness(status, upstreams)),
        content_type="application/json",
    )
