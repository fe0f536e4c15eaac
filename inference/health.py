"""The standard health service grpc.health.v1: one status per service and per model.

A model is NOT_SERVING while it loads, drains or is wedged, and after its engine has died. A wedged
engine runs requests and has made no progress for longer than its slowest step takes (registry.py).
It may recover. If it does not within WEDGED_SECONDS, or if the engine is dead, the process ends
with a status other than 0, so that its supervisor restarts it.

grpc_health's own asyncio servicer is not used: when one watcher of a name leaves, it drops the
condition that all watchers of that name wait for, and they get no further changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference.registry import Registry, ServedModel
from inference.rpc import address_of

log = logging.getLogger(__name__)

# Seconds between two checks of the engines.
POLL_SECONDS: Final = 0.5
# Seconds that an engine may stay wedged before the process ends.
WEDGED_SECONDS: Final = 60.0
# Concurrent Watch calls, of all callers and of those with one address: they need no key, and each
# uses memory.
MAX_WATCHERS: Final = 512
MAX_WATCHERS_OF_ADDRESS: Final = 64
# Characters of a service's name. A watcher's request stays in memory as long as its call, so longer
# names are refused.
MAX_NAME_CHARACTERS: Final = 1024
# Seconds that writing a status may take; then the watcher's call ends.
WRITE_SECONDS: Final = 30.0
# Services with a status of their own; the empty name means the whole process.
SERVICES: Final = ("", "isthmus.v1.InferenceService", "isthmus.session.v1alpha1.SessionService")

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):
    """Serves Check and Watch from a table of statuses.

    Attributes:
        statuses: Status by service name; changed by `publish` only.
    """

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self._watchers: Counter[str] = Counter()
        self._closed = False
        # Set and replaced at each change.
        self._changed = asyncio.Event()

    def publish(self, statuses: dict[str, int]) -> None:
        """Replaces all statuses and wakes the watchers."""
        if statuses != self.statuses:
            self.statuses = statuses
            self._changed.set()
            self._changed = asyncio.Event()

    def close(self) -> None:
        """Ends all watches, including those that begin later."""
        self._closed = True
        self._changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service; NOT_FOUND for an unknown one."""
        status = self.statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Sends the status of one service and each change of it until the caller leaves."""
        if len(request.service) > MAX_NAME_CHARACTERS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the name is too long")
        caller = address_of(context.peer())
        if (
            self._watchers.total() >= MAX_WATCHERS
            or self._watchers[caller] >= MAX_WATCHERS_OF_ADDRESS
        ):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
        self._watchers[caller] += 1
        told = None
        try:
            while not self._closed:
                changed = self._changed
                status = self.statuses.get(request.service, _UNKNOWN)
                if status != told:
                    async with asyncio.timeout(WRITE_SECONDS):
                        await context.write(health_pb2.HealthCheckResponse(status=status))
                    told = status
                await changed.wait()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the caller does not read")
        finally:
            self._watchers[caller] -= 1
            if not self._watchers[caller]:
                del self._watchers[caller]


class HealthMonitor:
    """Polls the engines and publishes their statuses.

    Args:
        registry: The models.
        services: The services with a status of their own.

    Attributes:
        service: The health service, for a gRPC server.
    """

    def __init__(self, registry: Registry, services: Sequence[str] = SERVICES) -> None:
        self._registry = registry
        self._services = services
        self._wedged_since: dict[str, float] = {}
        self.service = HealthService()

    def update(self) -> None:
        """Publishes the current state. Sets the registry's `dead` if the process must end."""
        accepting = not (self._registry.draining.is_set() or self._registry.dead.is_set())
        ready = {model.config.id: self._look(model) for model in self._registry.models}
        ready |= dict.fromkeys(self._services, all(ready.values()))
        self.service.publish(
            {name: _SERVING if accepting and ok else _NOT_SERVING for name, ok in ready.items()}
        )

    async def run(self) -> None:
        """Updates until cancelled."""
        while True:
            self.update()
            await asyncio.sleep(POLL_SECONDS)

    def _look(self, model: ServedModel) -> bool:
        """Whether a model accepts requests; an engine whose `health` raises counts as dead."""
        if not model.started:
            return False
        name = model.config.id
        try:
            alive, wedged = model.engine.health().alive, model.wedged()
        except Exception:
            log.exception("%s: the engine cannot tell its health; ending the process", name)
            self._registry.dead.set()
            return False
        if not alive:
            self._registry.dead.set()
        if not wedged:
            if self._wedged_since.pop(name, None) is not None:
                log.warning("%s: the engine makes progress again", name)
            return alive
        now = time.monotonic()
        if name not in self._wedged_since:
            self._wedged_since[name] = now
            log.error("%s: the engine makes no progress", name)
        elif now - self._wedged_since[name] > WEDGED_SECONDS:
            log.error("%s: no progress for %.0f s more; ending the process", name, WEDGED_SECONDS)
            self._registry.dead.set()
        return False
