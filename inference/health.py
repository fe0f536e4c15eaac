"""grpc.health.v1, per service and per model, with live Watch."""

from __future__ import annotations

import asyncio
from typing import Final

from grpc_health.v1 import health, health_pb2

from inference.registry import Registry

POLL_SECONDS: Final = 0.5
# The empty name stands for the process as a whole.
SERVICES: Final = ("", "isthmus.v1.InferenceService", "isthmus.session.v1alpha1.SessionService")

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthMonitor:
    """Keeps the health service true: loading, dead, wedged and draining are NOT_SERVING.

    Attributes:
        servicer: To be added to the server.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._shown: dict[str, int] = {}
        self.servicer = health.aio.HealthServicer()

    async def update(self) -> None:
        """Publishes what changed; watchers hear of it at once."""
        taking = not (self._registry.draining.is_set() or self._registry.dead.is_set())
        ready = {model.config.id: taking and model.ready() for model in self._registry.models}
        ready |= dict.fromkeys(SERVICES, all(ready.values()))
        for name, serves in ready.items():
            status = _SERVING if serves else _NOT_SERVING
            if self._shown.get(name) != status:
                self._shown[name] = status
                await self.servicer.set(name, status)
        if any(m.started and not m.engine.health().alive for m in self._registry.models):
            self._registry.dead.set()

    async def run(self) -> None:
        """Updates until cancelled."""
        while True:
            await self.update()
            await asyncio.sleep(POLL_SECONDS)
