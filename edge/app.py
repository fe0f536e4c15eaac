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

from edge.config import EdgeConfig
from edge.handlers.docs import docs, docs_asset, openapi
from edge.handlers.embeddings import create_embeddings
from edge.handlers.files import get_file
from edge.handlers.health import health, ready
from edge.handlers.images import create_images
from edge.handlers.models import list_models, retrieve_model
from edge.handlers.text import create_chat_completion, create_completion
from edge.http_protocol import EdgeRunner
from edge.image_files import NAME_PATTERN, open_file_store
from edge.listener import Listener
from edge.middleware.cors import allow_origins
from edge.middleware.serve import add_headers, serve
from edge.openai.errors import overloaded
from edge.state import EDGE, Edge
from edge.upstream.router import Router
from keys import KeyStore

log = logging.getLogger(__name__)

# Arguments of gc.set_threshold. With Python's defaults the collector runs for every third request,
# and it hardly ever finds garbage.
GC_THRESHOLDS: Final = (10_000, 20, 50)
# Bytes of freed heap that glibc keeps for the process instead of returning them to the kernel:
# enough to render the largest common response, a matrix of vectors as decimal numbers.
_KEPT_HEAP_BYTES: Final = 16 * 1024 * 1024
# Seconds that requests have for sending an error, once a stop has failed them.
_ERROR_SECONDS: Final = 0.1


def build_app(edge: Edge) -> web.Application:
    """Builds the application: its routes, its middleware and the signals that add headers."""
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
    """Serves HTTP while the context is open, and drains running requests when it is left.

    Yields the edge and the port that it listens on.

    Raises:
        ConfigError: The address cannot be bound, or `files_dir` or a PEM file cannot be used.
    """
    keys = KeyStore(config.keys_file) if config.keys_file else None
    async with open_file_store(config) as files:
        edge = Edge(config, Router(config, keys), keys, files)
        runner = EdgeRunner(build_app(edge), config)
        await runner.setup()
        try:
            site = Listener(runner, config)
            await site.start()
            yield edge, runner.addresses[0][1]
            edge.draining = True
            await _drain(edge, site)
        finally:
            await runner.cleanup()
            await edge.router.close()


async def _drain(edge: Edge, site: Listener) -> None:
    """Closes the port, waits for running requests, and fails those that outlast the bound."""
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
        await asyncio.sleep(_ERROR_SECONDS)


async def run_until_stopped(config: EdgeConfig) -> int:
    """Serves until SIGTERM or SIGINT; a second signal exits at once with status 130.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: See `serving`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    _keep_freed_heap()
    async with serving(config) as (_, port):
        # Objects from start-up live as long as the process: later collections skip them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        scheme = "http" if config.tls_certificate is None else "https"
        log.info("listening on %s://%s:%d", scheme, config.host, port)
        await stop.wait()
    return 0


def _keep_freed_heap() -> None:
    """Makes glibc keep `_KEPT_HEAP_BYTES` of freed heap.

    By default it returns freed memory at the end of the heap to the kernel at once, and each large
    response then gets it back page by page. Freeing one block that glibc had mapped by itself
    raises two thresholds: blocks up to its size now come from the heap, and the heap keeps twice
    its size (mallopt(3), M_MMAP_THRESHOLD). The pages of the block are never touched.
    """
    bytes(_KEPT_HEAP_BYTES // 2)
