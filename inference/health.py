"""The standard health service grpc.health.v1: one status per service and per model."""

from __future__ import annotations

import asyncio
from typing import Final

from grpc_health.v1 import health, health_pb2

from inference.registry import Registry

# Seconds between two looks at the engines.
POLL_SECONDS: Final = 0.5
# Names with a status of their own; the empty name is the process as a whole.
SERVICES: Final = ("", "isthmus.v1.InferenceService", "isthmus.session.v1alpha1.SessionService")

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthMonitor:
    """Updates the health service: loading, dead, wedged and draining models are NOT_SERVING.

    It also sets the registry's `dead` once an engine has failed.

    Attributes:
        servicer: The health service, for a gRPC server.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._published: dict[str, int] = {}
        self.servicer = health.aio.HealthServicer()

    async def update(self) -> None:
        """Publishes changes; watchers of the service receive them at once."""
        accepting = not (self._registry.draining.is_set() or self._registry.dead.is_set())
        ready = {model.config.id: accepting and model.ready() for model in self._registry.models}
        ready |= dict.fromkeys(SERVICES, all(ready.values()))
        for name, serving in ready.items():
            status = _SERVING if serving else _NOT_SERVING
            if self._published.get(name) != status:
                self._published[name] = status
                await self.servicer.set(name, status)
        if any(m.started and not m.engine.health().alive for m in self._registry.models):
            self._registry.dead.set()

    async def run(self) -> None:
        """Updates until cancelled."""
        while True:
            await self.update()
            await asyncio.sleep(POLL_SECONDS)
