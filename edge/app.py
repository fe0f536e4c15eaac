"""The composition root: the only place where the parts of an edge are wired together."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from edge.config import ConfigError, EdgeConfig
from edge.handlers.docs import docs, docs_asset, openapi
from edge.handlers.embeddings import create_embeddings
from edge.handlers.files import get_file
from edge.handlers.health import health, ready
from edge.handlers.images import create_images
from edge.handlers.models import list_models, retrieve_model
from edge.handlers.text import create_chat_completion, create_completion
from edge.http_protocol import EdgeRunner
from edge.image_files import NAME_PATTERN, open_file_store
from edge.middleware.cors import allow_origins
from edge.middleware.response_headers import add_headers
from edge.middleware.serve import serve
from edge.openai.errors import overloaded
from edge.state import EDGE, Edge
from edge.upstream.router import Router
from keys import KeyStore

log = logging.getLogger(__name__)

# Python's own make the collector look at every third request for garbage that is hardly ever there.
GC_THRESHOLDS: Final = (10_000, 20, 50)
# Of freed memory: what the largest usual answer, a matrix of vectors as numbers, is made with.
_KEPT_BYTES: Final = 16 * 1024 * 1024


def build_app(edge: Edge) -> web.Application:
    """Routes, and what happens around them."""
    app = web.Application(middlewares=[serve])
    app[EDGE] = edge
    app.on_response_prepare.append(add_headers)
    if origins := edge.config.cors_origins:
        app.on_response_prepare.append(allow_origins(origins))
    app.router.add_post("/v1/chat/completions", create_chat_completion)
    app.router.add_post("/v1/completions", create_completion)
    app.router.add_post("/v1/embeddings", create_embeddings)
    app.router.add_post("/v1/images/generations", create_images)
    app.router.add_get(f"/files/{{name:{NAME_PATTERN}}}", get_file)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{id:.+}", retrieve_model)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/docs", docs)
    app.router.add_get("/docs/{asset}", docs_asset)
    return app


@asynccontextmanager
async def serving(config: EdgeConfig) -> AsyncIterator[tuple[Edge, int]]:
    """Serves HTTP while the context is open; yields the edge and its port.

    Raises:
        ConfigError: The address cannot be bound, or `files_dir` cannot be used.
    """
    keys = KeyStore(config.keys_file) if config.keys_file else None
    async with open_file_store(config) as files:
        edge = Edge(config, Router(config), keys, files)
        runner = EdgeRunner(build_app(edge), config)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner, config.host, config.port, reuse_port=config.reuse_port or None
            )
            try:
                await site.start()
            except OSError as error:
                raise ConfigError(f"port: cannot listen on {config.host}:{config.port}") from error
            yield edge, runner.addresses[0][1]
            edge.draining = True
            await _drain(edge, site)
        finally:
            await runner.cleanup()
            await edge.router.close()


async def _drain(edge: Edge, site: web.TCPSite) -> None:
    """Lets running requests end within the bound; those that do not get an error."""
    log.info("draining: %d requests", edge.requests)
    await asyncio.sleep(edge.config.settle_seconds)
    await site.stop()
    if not edge.requests:
        return
    try:
        async with asyncio.timeout(edge.config.drain_seconds):
            await edge.idle.wait()
    except TimeoutError:
        log.warning("draining: %d requests did not end in time", edge.requests)
        for exchange in tuple(edge.exchanges):
            exchange.fail(overloaded())
        await asyncio.sleep(0.1)


async def run_until_stopped(config: EdgeConfig) -> int:
    """Runs the process until SIGTERM or SIGINT; a second signal ends it at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # glibc hands freed memory back to the kernel and fetches it again, page by page, for the next
    # large answer. A freed block of this size (never touched) makes it keep twice as much.
    bytes(_KEPT_BYTES // 2)
    async with serving(config) as (_, port):
        # What start-up made lives as long as the process: the collector need not look at it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        log.info("listening on http://%s:%d", config.host, port)
        await stop.wait()
    return 0
