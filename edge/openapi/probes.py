"""The operations of probes, figures, and the edge's own pages."""

from __future__ import annotations

from typing import Final

from edge.openapi.operation import Operation
from edge.openapi.responses import Health, Load, Readiness, Version

_TEXT: Final = {"type": "string"}


def _readiness(path: str, operation_id: str, summary: str, method: str = "get") -> Operation:
    return Operation(
        path=path,
        id=operation_id,
        method=method,
        tag="Operations",
        summary=summary,
        description="Checks that requests can be served: every upstream has a serving replica, and "
        "the edge is not stopping.",
        success="Requests can be served.",
        content={"application/json": Readiness},
        other={503: ("Some or all requests cannot be served.", Readiness)},
        open=True,
    )


PROBES: Final = (
    Operation(
        path="/health",
        id="health",
        tag="Operations",
        summary="Liveness",
        description="Checks that the process runs.",
        success="The process runs.",
        content={"application/json": Health},
        open=True,
    ),
    _readiness("/ready", "ready", "Readiness"),
    _readiness("/ping", "ping", "Readiness, for SageMaker"),
    _readiness("/ping", "pingByPost", "Readiness, for SageMaker, by POST", method="post"),
    Operation(
        path="/load",
        id="load",
        tag="Operations",
        summary="Requests under way",
        description="Counts the requests that this edge process answers at the moment.",
        success="The number.",
        content={"application/json": Load},
    ),
    Operation(
        path="/version",
        id="version",
        tag="Operations",
        summary="Version",
        description="The version of Isthmus, not of an engine.",
        success="The version.",
        content={"application/json": Version},
    ),
    Operation(
        path="/metrics",
        id="metrics",
        tag="Operations",
        summary="Metrics",
        description="Metrics of all edge processes on the port, for Prometheus and schedulers. A "
        "key of scope `metrics` reads them and nothing else. 404 if they have a listener of their "
        "own.",
        success="The metrics.",
        content={"text/plain": {"type": "string"}},
    ),
    Operation(
        path="/openapi.json",
        id="openapi",
        tag="Operations",
        summary="This document",
        description="The OpenAPI 3.1 document of this edge, as it is configured.",
        success="The document.",
        content={"application/json": {"type": "object", "required": ["openapi"]}},
        headers=("etag",),
        other={304: ("The document has not changed since the `etag` of `if-none-match`.", None)},
        open=True,
    ),
    Operation(
        path="/",
        id="page",
        tag="Operations",
        summary="The page",
        description="Tries the models in a browser: chats, images and embeddings.",
        success="The page.",
        content={"text/html": {"type": "string"}},
        open=True,
    ),
    Operation(
        path="/page/{asset}",
        id="pageAsset",
        tag="Operations",
        summary="A file of the page",
        description="A script, the style sheet or the icon of `/`.",
        parameters=("asset",),
        success="The file.",
        content=dict.fromkeys(("text/javascript", "text/css", "image/svg+xml"), _TEXT),
        open=True,
    ),
    Operation(
        path="/docs",
        id="docs",
        tag="Operations",
        summary="This document, as a page",
        description="Shows this document and sends requests from the browser.",
        success="The page.",
        content={"text/html": {"type": "string"}},
        open=True,
    ),
    Operation(
        path="/docs/{asset}",
        id="docsAsset",
        tag="Operations",
        summary="A file of `/docs`",
        description="The script or the style sheet of `/docs`.",
        parameters=("asset",),
        success="The file.",
        content={"text/javascript": {"type": "string"}, "text/css": {"type": "string"}},
        open=True,
    ),
)
