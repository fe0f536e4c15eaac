"""Probes and figures of the process: /health, /ready, and vLLM's /ping, /load and /version."""

from __future__ import annotations

from importlib import metadata

import msgspec
from aiohttp import web

from edge.openapi.responses import Health, Load, Readiness, Version
from edge.state import EdgeRequest


async def health(_: EdgeRequest) -> web.Response:
    """GET /health: always 200."""
    return web.Response(body=msgspec.json.encode(Health()), content_type="application/json")


async def version(_: EdgeRequest) -> web.Response:
    """GET /version: the version of Isthmus."""
    body = msgspec.json.encode(Version(metadata.version("isthmus")))
    return web.Response(body=body, content_type="application/json")


async def load(request: EdgeRequest) -> web.Response:
    """GET /load: the requests that this edge process answers at the moment, this one excluded."""
    body = msgspec.json.encode(Load(request.edge.requests - 1))
    return web.Response(body=body, content_type="application/json")


async def ready(request: EdgeRequest) -> web.Response:
    """GET /ready, and GET or POST /ping.

    200 while each upstream has a serving replica and the edge is not stopping.
    """
    edge = request.edge
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
