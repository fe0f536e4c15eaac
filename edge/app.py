"""The composition root: the only place where the parts of an edge are wired together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from aiohttp import web

from contract import process
from contract.access_log import access_log
from contract.memory import MemoryBudget, default_budget
from contract.metrics_listener import metrics_listener
from contract.tracing import TracingError, tracing
from edge.config import EdgeConfig
from edge.handlers.docs import docs, docs_asset, openapi, page, page_asset
from edge.handlers.embeddings import create_embeddings
from edge.handlers.files import get_file
from edge.handlers.health import health, load, ready, version
from edge.handlers.images import create_images
from edge.handlers.metrics import metrics
from edge.handlers.models import list_models, retrieve_model
from edge.handlers.responses import delete_response, get_response, list_input_items
from edge.handlers.text import (
    create_chat_completion,
    create_completion,
    create_message,
    create_response,
)
from edge.handlers.tokens import (
    count_message_tokens,
    count_response_tokens,
    detokenize,
    tokenize,
)
from edge.http_protocol import EdgeRunner
from edge.image_files import NAME_PATTERN, open_file_store
from edge.listener import Listener
from edge.middleware.cors import allow_origins
from edge.middleware.serve import add_headers, serve
from edge.observer import Observer
from edge.openai.errors import overloaded
from edge.response_store import open_response_store
from edge.state import EDGE, Edge
from edge.upstream.router import Router
from keys import ConfigError, KeyStore

log = logging.getLogger(__name__)

# Seconds that requests have for sending an error, once a stop has failed them.
_ERROR_SECONDS: Final = 1.0
# Seconds that a starting edge waits for its replicas before it opens its port.
_FIRST_CONTACT_SECONDS: Final = 0.5
# Seconds that the metrics may take.
_METRICS_SECONDS: Final = 5.0
# Seconds between two looks at a condition that has no event.
_POLL_SECONDS: Final = 0.02


def build_app(edge: Edge) -> web.Application:
    """Builds the application: its routes, its middleware and the signals that add headers."""
    # aiohttp's types know only its own request; http_protocol.py makes each one an EdgeRequest.
    around: Any = serve
    headers: Any = add_headers
    app = web.Application(middlewares=[around])
    app[EDGE] = edge
    app.on_response_prepare.append(headers)
    if origins := edge.config.cors_origins:
        app.on_response_prepare.append(allow_origins(origins))
    router: Any = app.router
    router.add_post("/v1/chat/completions", create_chat_completion)
    router.add_post("/v1/responses", create_response)
    router.add_post("/v1/responses/input_tokens", count_response_tokens)
    # Excludes /v1/responses/input_tokens, which is a route of its own and takes POST only.
    kept = "/v1/responses/{id:(?!input_tokens$)[^/]+}"
    router.add_get(kept, get_response)
    router.add_delete(kept, delete_response)
    router.add_get("/v1/responses/{id}/input_items", list_input_items)
    router.add_post("/v1/completions", create_completion)
    router.add_post("/v1/messages", create_message)
    router.add_post("/v1/messages/count_tokens", count_message_tokens)
    router.add_post("/v1/embeddings", create_embeddings)
    router.add_post("/v1/images/generations", create_images)
    router.add_post("/tokenize", tokenize)
    router.add_post("/detokenize", detokenize)
    router.add_get(f"/files/{{name:{NAME_PATTERN}}}", get_file)
    router.add_get("/v1/models", list_models)
    router.add_get("/v1/models/{id:.+}", retrieve_model)
    router.add_get("/health", health)
    router.add_get("/ready", ready)
    router.add_get("/ping", ready)
    router.add_post("/ping", ready)
    router.add_get("/load", load)
    router.add_get("/version", version)
    router.add_get("/metrics", metrics)
    router.add_get("/openapi.json", openapi)
    router.add_get("/", page)
    router.add_get("/page/{asset}", page_asset)
    router.add_get("/docs", docs)
    router.add_get("/docs/{asset}", docs_asset)
    return app


@asynccontextmanager
async def serving(config: EdgeConfig) -> AsyncIterator[tuple[Edge, int]]:
    """Serves HTTP while the context is open, and drains running requests when it is left.

    Yields the edge and the port that it listens on.

    Raises:
        ConfigError: The address cannot be bound, `files_dir` or a PEM file cannot be used, or
            `responses_bytes` is too much.
    """
    keys = KeyStore(config.keys_file) if config.keys_file else None
    async with open_file_store(config) as files:
        observer = _observer(config)
        memory = MemoryBudget(config.memory_budget_bytes or default_budget())
        responses = open_response_store(config, memory)
        edge = Edge(
            config,
            Router(config, keys),
            keys,
            files,
            memory,
            observer=observer,
            responses=responses,
        )
        runner = EdgeRunner(build_app(edge), config, memory)
        edge.metrics.connections = lambda: len(runner.server.connections) if runner.server else 0
        await runner.setup()
        watching = asyncio.create_task(edge.metrics.process.watch())
        try:
            await _first_contact(edge.router)
            site = Listener(runner, config)
            await site.start()
            with _metrics_listener(edge):
                yield edge, runner.addresses[0][1]
                edge.draining = True
                await _drain(edge, site, runner)
        finally:
            watching.cancel()
            await runner.cleanup()
            await edge.router.close()
            if responses is not None:
                responses.close()
            if observer is not None:
                await observer.close()


def _observer(config: EdgeConfig) -> Observer | None:
    log_of = access_log("edge", config.access_log)
    try:
        traces = tracing("edge", config.otlp_endpoint)
    except TracingError as error:
        raise ConfigError(f"otlp_endpoint: {error}") from error
    return Observer(log_of, traces) if log_of is not None or traces is not None else None


@contextmanager
def _metrics_listener(edge: Edge) -> Iterator[None]:
    """Serves the metrics on `metrics_listen`; ConfigError if it cannot be bound."""
    loop = asyncio.get_running_loop()

    def text() -> bytes:
        made = asyncio.run_coroutine_threadsafe(edge.metrics_text.all(), loop)
        return made.result(_METRICS_SECONDS)

    listen = edge.config.metrics_listen
    with ExitStack() as stack:
        try:
            stack.enter_context(metrics_listener(listen, text, share_port=edge.config.reuse_port))
        except OSError as error:
            raise ConfigError(f"metrics_listen: cannot listen on {listen}") from error
        yield


async def _first_contact(router: Router) -> None:
    """Waits a moment for the replicas: connections after a restart would get a 503 otherwise."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_CONTACT_SECONDS):
            while not router.ready():  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)


async def _drain(edge: Edge, site: Listener, runner: EdgeRunner) -> None:
    """Closes the port and waits until every response is with the kernel.

    Requests that outlast `drain_seconds` end with a 503, or an error event in a stream.
    """
    log.info("draining: %d requests, %r", edge.requests, edge.memory)
    await asyncio.sleep(edge.config.settle_seconds)
    await site.stop()
    if await _all_sent(runner, edge.config.drain_seconds):
        return
    log.warning("draining: %d connections did not end in time", runner.busy)
    for exchange in tuple(edge.exchanges):
        exchange.fail(overloaded())
    runner.fail_bodies(overloaded())
    await _all_sent(runner, _ERROR_SECONDS)


async def _all_sent(runner: EdgeRunner, seconds: float) -> bool:
    """Waits until no connection is busy, for `seconds` at most; returns whether none is.

    It takes two looks: at one of them a request, or bytes, may be between two places.
    """
    idle_looks = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while idle_looks < 2:
                idle_looks = 0 if runner.busy else idle_looks + 1
                await asyncio.sleep(_POLL_SECONDS)
            return True
    return not runner.busy


async def run_until_stopped(config: EdgeConfig) -> int:
    """Serves until SIGTERM or SIGINT; a second signal cancels it.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: See `serving`.
    """
    stop = process.stop_event()
    process.keep_freed_heap()
    watchdog = asyncio.create_task(process.watch_event_loop())
    try:
        async with serving(config) as (_, port):
            process.freeze_objects()
            scheme = "http" if config.tls_certificate is None else "https"
            log.info("listening on %s://%s:%d", scheme, config.host, port)
            await stop.wait()
    finally:
        watchdog.cancel()
    return 0
