"""An inference process: listens at once, serves when its models are loaded, drains when told."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference.auth import KeyInterceptor
from inference.config import ServerConfig
from inference.engines import create_engine
from inference.fault_interceptor import FaultGuard
from inference.health import HealthMonitor
from inference.registry import Registry, ServedModel
from inference.service import InferenceService
from inference.session import SessionService
from isthmus.session.v1alpha1 import session_pb2
from isthmus.session.v1alpha1.session_pb2_grpc import add_SessionServiceServicer_to_server
from isthmus.v1 import inference_pb2
from isthmus.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from keys import ConfigError, KeyStore

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Load balancers and edges see NOT_SERVING before the port closes.
SETTLE_SECONDS: Final = 0.5
GOODBYE_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 20.0
# Of the garbage collector; the edge says why.
GC_THRESHOLDS: Final = (10_000, 20, 50)
# Of freed memory: what the usual matrix of vectors is answered with.
_KEPT_BYTES: Final = 16 * 1024 * 1024

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # Pings both ways notice a peer that froze or a network that swallows packets; the minimum
    # lies below the edge's own period, or its pings would end the connection.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.bdp_probe", 0),
)


class InferenceServer:
    """One process: its registry, its gRPC server and their lives.

    Attributes:
        registry: The models served.
        port: Where it listens, once `start` has returned.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = _keys(config)
        self.registry = Registry(
            [ServedModel(m, create_engine(m), self._keys) for m in config.models]
        )
        self.port = 0
        self._monitor = HealthMonitor(self.registry)
        self._polling: asyncio.Task[None] | None = None
        self._server = self._build()

    async def start(self) -> None:
        """Listens, with health NOT_SERVING and every model "still loading".

        Raises:
            ConfigError: The address cannot be bound.
        """
        credentials = _tls(self._config)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(self._config.listen)
            else:
                self.port = self._server.add_secure_port(self._config.listen, credentials)
        except RuntimeError as error:
            raise ConfigError(f"listen: cannot bind {self._config.listen}") from error
        await self._monitor.update()
        await self._server.start()
        self._polling = asyncio.create_task(self._monitor.run())

    async def load(self) -> None:
        """Loads the models one after another and begins to serve each as it is ready."""
        for served in self.registry.models:
            name = served.config.id

            def report(stage: str, name: str = name) -> None:
                log.info("%s: %s", name, stage)

            await served.engine.start(report)
            served.started = True
            await self._monitor.update()
            log.info("%s: ready", name)
        # What was loaded stays: the collector would look at millions of objects again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    async def drain(self) -> None:
        """Takes no new work, lets running work end within the bound, then stops listening."""
        self.registry.draining.set()
        await self._monitor.update()
        log.info("draining: %s", ", ".join(repr(m.admission) for m in self.registry.models))
        await asyncio.sleep(SETTLE_SECONDS)
        try:
            async with asyncio.timeout(self._config.drain_seconds):
                await self.registry.wait_idle()
        except TimeoutError:
            log.warning("draining: %d calls did not end in time", self.registry.running_calls)
        # What is left are sessions that say goodbye and watchers of health.
        await self._server.stop(GOODBYE_SECONDS)

    async def close(self) -> None:
        """Frees everything; bounded."""
        if self._polling is not None:
            self._polling.cancel()
        await self._server.stop(0)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(m.engine.close() for m in self.registry.models))
        except TimeoutError:
            log.warning("an engine did not close within %.0f s", CLOSE_SECONDS)
        gc.unfreeze()  # Frozen objects would be left at exit, and their libraries complain.

    def _build(self) -> grpc.aio.Server:
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (FaultGuard(),)
        if self._keys is not None:
            interceptors = (FaultGuard(), KeyInterceptor(self._keys))
        server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
        add_InferenceServiceServicer_to_server(InferenceService(self.registry), server)
        add_SessionServiceServicer_to_server(SessionService(self.registry), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._monitor.servicer, server)
        services = (
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(services, server)
        return server


async def run_until_stopped(config: ServerConfig) -> int:
    """Runs the process: 0 after SIGTERM or SIGINT, 1 when an engine died or would not load.

    A second signal ends it at once.
    """
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
    server = InferenceServer(config)
    await server.start()
    log.info("listening on %s", config.listen.rpartition(":")[0] + f":{server.port}")
    waits = [
        loading := asyncio.create_task(server.load()),
        stopped := asyncio.create_task(stop.wait()),
        dead := asyncio.create_task(server.registry.dead.wait()),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and loading.exception() is None:
            await asyncio.wait([stopped, dead], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            await server.drain()
            return 0
        if loading.done() and (error := loading.exception()) is not None:
            log.error("loading failed", exc_info=error)
        return 1
    finally:
        for wait in waits:
            wait.cancel()
        await server.close()


def _keys(config: ServerConfig) -> KeyStore | None:
    if config.keys_file is None and config.edge_token_sha256 is None:
        return None
    return KeyStore(config.keys_file, edge_token_sha256=config.edge_token_sha256)


def _tls(config: ServerConfig) -> grpc.ServerCredentials | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    pair = (config.tls_key.read_bytes(), config.tls_certificate.read_bytes())
    if config.tls_client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials(
        [pair], root_certificates=config.tls_client_ca.read_bytes(), require_client_auth=True
    )
