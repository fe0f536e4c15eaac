"""GET /health, the liveness probe, and GET /ready, the readiness probe."""

from __future__ import annotations

import msgspec
from aiohttp import web

from edge.openapi.responses import Health, Readiness
from edge.state import EDGE


async def health(_: web.Request) -> web.Response:
    """GET /health: always 200."""
    return web.Response(body=msgspec.json.encode(Health()), content_type="application/json")


async def ready(request: web.Request) -> web.Response:
    """GET /ready: 200 while each upstream has a serving replica and the edge is not stopping."""
    edge = request.app[EDGE]
    upstreams = {upstream.target: upstream.serving for upstream in edge.router.upstreams}
    problems = {
        upstream.target: problem
        for upstream in edge.router.upstreams
        if (problem := upstream.problem)
    }
    is_ready = edge.router.ready() and not edge.draining
    status = "draining" if edge.draining else "ready" if is_ready else "waiting for upstreams"
    return web.Response(
        status=200 if is_ready else 503,
        body=msgspec.json.encode(Readiness(status, upstreams, problems)),
        content_type="application/json",
    )
