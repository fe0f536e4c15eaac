"""A second port, on which other gateways drive the model: SMG, llm-d and others.

They speak vllm.grpc.engine, which engines/vllm_gateway.py serves. Keys, TLS, permits, limits, drain
and metrics are those of the first port.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from inference.health import HealthService
from inference.registry import Registry, ServedModel
from keys import ConfigError

GATEWAY_SERVICE: Final = "vllm.grpc.engine.VllmEngine"


class GatewayServer:
    """The gRPC server of the second port.

    Args:
        registry: The models; one of them has the engine vllm.
        health: Answers the standard health checks.
        interceptors, options: Those of the first port.

    Attributes:
        server: Has its port before `open`, so that an address in use is found before models load.

    Raises:
        ConfigError: The package smg-grpc-servicer is not installed.
    """

    def __init__(
        self,
        registry: Registry,
        health: HealthService,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: Sequence[tuple[str, Any]],
    ) -> None:
        if find_spec("smg_grpc_servicer") is None:
            raise ConfigError(
                "gateway_listen: needs the package smg-grpc-servicer: "
                "pip install 'isthmus[gateway]'"
            )
        self._registry = registry
        self.server = grpc.aio.server(interceptors=interceptors, options=options)
        health_pb2_grpc.add_HealthServicer_to_server(health, self.server)

    async def open(self, served: ServedModel) -> None:
        """Begins to serve, if it is the model of the engine vllm; its engine has started."""
        if served.config.engine != "vllm":
            return
        # Imported here, because few processes serve it and it imports vLLM.
        from smg_grpc_proto.generated.vllm_engine_pb2_grpc import add_VllmEngineServicer_to_server

        from inference.engines.vllm_gateway import GatewayService

        add_VllmEngineServicer_to_server(GatewayService(self._registry, served), self.server)
        await self.server.start()
