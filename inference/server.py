"""The phases of an inference process, from start to end.

    phase       health         calls
    loading     NOT_SERVING    refused with "still loading", per model until its engine has started
    serving     SERVING        served
    draining    NOT_SERVING    new ones refused; running ones continue for up to `drain_seconds`
    closing     none           cancelled; engines free their processes and memory

The port opens in the first phase, so that health checks work while models load. SIGTERM and SIGINT
start the drain; a dead engine or a failed start leads directly to closing, with exit status 1.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY

from contract import process
from contract.access_log import access_log
from contract.memory import MemoryBudget, default_budget
from contract.metrics import exposition
from contract.metrics_listener import metrics_listener
from contract.process_metrics import ProcessMetrics
from contract.tracing import Tracing, TracingError, tracing
from inference.config import ServerConfig
from inference.engines import create_engine
from inference.fronts import Front
from inference.gateway import GATEWAY_SERVICE, GatewayServer
from inference.health import SERVICES, HealthMonitor
from inference.listener import bind, server_credentials
from inference.observer import Observer
from inference.rate_table import RateTable
from inference.registry import Registry, ServedModel
from inference.rpc import FaultGuard, KeyInterceptor
from inference.service import InferenceService
from inference.session import SessionService
from isthmus.session.v1alpha1 import session_pb2
from isthmus.session.v1alpha1.session_pb2_grpc import add_SessionServiceServicer_to_server
from isthmus.v1 import inference_pb2
from isthmus.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from keys import ConfigError, KeyStore

log = logging.getLogger(__name__)

# Bytes of one gRPC message in either direction; the edge has the same limit.
MAX_RPC_BYTES: Final = 64 * 1024 * 1024
# Minimum seconds of a drain, in which load balancers and edges notice NOT_SERVING.
SETTLE_SECONDS: Final = 0.5
# Seconds for sessions to end after a drain that reached its limit.
GOODBYE_SECONDS: Final = 1.0
# Seconds for all engines together to close.
CLOSE_SECONDS: Final = 20.0
# Families of prometheus-client's default registry that belong to an engine.
ENGINE_PREFIXES: Final = ("vllm:",)

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RPC_BYTES),
    ("grpc.max_send_message_length", MAX_RPC_BYTES),
    ("grpc.so_reuseport", 0),
    # Pings from both sides detect a frozen peer and a network that drops packets. The minimum is
    # below the edge's period; otherwise the edge's pings would end the connection.
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
    """The registry and the gRPC server of one process.

    Attributes:
        registry: The served models.
        port: The port that it listens on; 0 before `start`.
        gateway_port: The port for other gateways; 0 if there is none.
        metrics_port: The port of GET /metrics; 0 if there is none.

    Args:
        config: Its settings.
        front: Which front of its model it is; None if it has the engine for itself.

    Raises:
        ConfigError: A model's engine arguments cannot be used.
    """

    def __init__(self, config: ServerConfig, front: Front | None = None) -> None:
        self._config = config
        self._front = front
        self._keys = _keys(config)
        self._rates = rates = RateTable(front.rates) if front is not None else None
        self.registry = Registry(
            [ServedModel(m, create_engine(m, front), self._keys, rates) for m in config.models],
            MemoryBudget(config.memory_budget_bytes or _default_budget(front)),
        )
        log_of = access_log("inference", config.access_log)
        traces = configured_tracing(config.otlp_endpoint)
        if log_of is not None or traces is not None:
            self.registry.observer = Observer(log_of, traces)
        for served in self.registry.models:
            served.engine.exports_metrics = config.metrics_listen is not None
            served.engine.tracing = traces
        self.port = self.gateway_port = self.metrics_port = 0
        self._process = ProcessMetrics(
            self.registry.memory,
            self._keys.reloads if self._keys is not None else {},
            self.registry.metrics.histograms,
        )
        self._listeners = ExitStack()
        gateways = (GATEWAY_SERVICE,) if config.gateway_listen is not None else ()
        self._monitor = HealthMonitor(self.registry, (*SERVICES, *gateways))
        self._tasks: list[asyncio.Task[None]] = []
        guard = FaultGuard(self.registry.memory, self.registry.observer)
        self._interceptors: Sequence[grpc.aio.ServerInterceptor] = (guard,)
        if self._keys is not None:
            self._interceptors = (guard, KeyInterceptor(self._keys, self.registry.observer))
        self._server = self._build()
        self._gateway: GatewayServer | None = None
        if config.gateway_listen is not None:
            self._gateway = GatewayServer(
                self.registry, self._monitor.service, self._interceptors, _OPTIONS
            )

    async def start(self) -> None:
        """Opens the port, with health NOT_SERVING and all models "still loading".

        Raises:
            ConfigError: The address cannot be bound, or a TLS file cannot be used.
        """
        credentials = server_credentials(self._config)
        self.port = bind(self._server, "listen", self._config.listen, credentials)
        if self._config.probe_socket is not None:
            self._server.add_insecure_port(f"unix:{self._config.probe_socket}")
        if self._gateway is not None:
            address = str(self._config.gateway_listen)
            self.gateway_port = bind(self._gateway.server, "gateway_listen", address, credentials)
        try:
            self.metrics_port = self._listeners.enter_context(
                metrics_listener(self._config.metrics_listen, self.metrics)
            )
        except OSError as error:
            raise ConfigError(
                f"metrics_listen: cannot bind {self._config.metrics_listen}"
            ) from error
        self._monitor.update()
        await self._server.start()
        for work in (self._monitor.run(), self._process.watch()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    def metrics(self) -> bytes:
        """The text of GET /metrics, those of the engines' libraries included."""
        own = chain(self.registry.metrics.collect(), self._process.collect())
        found = REGISTRY.collect() if self._front is None else self._front.engine_metrics()
        engines = (m for m in found if m.name.startswith(ENGINE_PREFIXES))
        return exposition(chain(own, engines))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("a task of the server failed; ending the process", exc_info=task.exception())
            self.registry.dead.set()

    async def load(self) -> None:
        """Starts the engines one after another; each model is served once its own runs."""
        for served in self.registry.models:
            # The launcher, or the unit, names a process with one model.
            name = f"{served.config.id}: " if len(self.registry.models) > 1 else ""

            def report(stage: str, name: str = name) -> None:
                log.info("%s%s", name, stage)

            await served.engine.start(report)
            served.started = True
            if self._gateway is not None:
                await self._gateway.open(served)
            self._monitor.update()
            report("ready")
        process.freeze_objects()

    async def drain(self) -> None:
        """Refuses new calls, waits up to `drain_seconds` for running ones, and stops listening."""
        self.registry.draining.set()
        self._monitor.update()
        admissions = ", ".join(repr(m.admission) for m in self.registry.models)
        log.info("draining: %s, %r", admissions, self.registry.memory)
        await asyncio.sleep(SETTLE_SECONDS)
        until = time.monotonic() + self._config.drain_seconds
        try:
            async with asyncio.timeout(self._config.drain_seconds):
                await self.registry.wait_idle()
        except TimeoutError:
            log.warning("draining: %d calls did not end in time", self.registry.running_calls)
        self._monitor.service.close()
        # Waits until callers have read output in grpc's buffers, and until edges have closed the
        # sessions in which they received going_away.
        await self._stop(max(GOODBYE_SECONDS, until - time.monotonic()))

    async def close(self) -> None:
        """Stops the server and closes the engines, within CLOSE_SECONDS."""
        for task in self._tasks:
            task.cancel()
        self._listeners.close()
        await self._stop(0)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(m.engine.close() for m in self.registry.models))
        except TimeoutError:
            log.warning("an engine did not close within %.0f s", CLOSE_SECONDS)
        if self.registry.observer is not None:
            await self.registry.observer.close()
        if self._rates is not None:
            self._rates.close()
        # Frozen objects would not be freed at exit, which their libraries log as leaks.
        gc.unfreeze()

    async def _stop(self, grace: float) -> None:
        gateways = [self._gateway.server] if self._gateway is not None else []
        await asyncio.gather(*(server.stop(grace) for server in (self._server, *gateways)))

    def _build(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=self._interceptors, options=_OPTIONS)
        service = InferenceService(self.registry, knows_keys=self._config.keys_file is not None)
        add_InferenceServiceServicer_to_server(service, server)
        add_SessionServiceServicer_to_server(SessionService(self.registry), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._monitor.service, server)
        services = (
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(services, server)
        return server


async def run_until_stopped(config: ServerConfig, front: Front | None = None) -> int:
    """Runs the process until a signal or a failure; a second signal cancels it.

    Returns:
        The exit status: 0 after SIGTERM or SIGINT, 1 after a dead engine or a failed start.
    """
    stop = process.stop_event()
    process.keep_freed_heap()
    server = InferenceServer(config, front)
    await server.start()
    host = config.listen.rpartition(":")[0]
    log.info("listening on %s", config.listen if host == "unix" else f"{host}:{server.port}")
    waits = [
        loading := asyncio.create_task(server.load()),
        stopped := asyncio.create_task(stop.wait()),
        dead := asyncio.create_task(server.registry.dead.wait()),
        asyncio.create_task(process.watch_event_loop()),
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


def _default_budget(front: Front | None) -> int:
    return default_budget() if front is None else default_budget() // front.count


def _keys(config: ServerConfig) -> KeyStore | None:
    if config.keys_file is None and config.edge_token_sha256 is None:
        return None
    return KeyStore(config.keys_file, edge_token_sha256=config.edge_token_sha256)


def configured_tracing(otlp_endpoint: str | None) -> Tracing | None:
    """Raises ConfigError if the endpoint or its packages are not usable."""
    try:
        return tracing("inference", otlp_endpoint)
    except TracingError as error:
        raise ConfigError(f"otlp_endpoint: {error}") from error
