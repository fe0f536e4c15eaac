"""GET /metrics, for Prometheus and for schedulers."""

from __future__ import annotations

import socket

from aiohttp import web

from contract.metrics import CONTENT_TYPE
from edge.openai.errors.http import unknown_path
from edge.state import EdgeRequest


async def metrics(request: EdgeRequest) -> web.Response:
    """GET /metrics: of all edge processes on the port; on a process's own socket, of that one.

    Raises:
        OpenAIError: 404, the metrics have a listener of their own.
    """
    edge = request.edge
    if is_own_socket(request):
        text = edge.metrics_text.own()
    elif edge.config.metrics_listen is not None:
        raise unknown_path(request.method, request.path)
    else:
        text = await edge.metrics_text.all()
    return web.Response(body=text, headers={"content-type": CONTENT_TYPE})


def is_own_socket(request: EdgeRequest) -> bool:
    """Whether a request came on the Unix socket, which only this user can reach."""
    transport = request.transport
    listener = transport.get_extra_info("socket") if transport is not None else None
    return listener is not None and listener.family == socket.AF_UNIX
