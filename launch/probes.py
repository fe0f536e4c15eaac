"""Probes that check over gRPC or HTTP whether a program serves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from launch.child import Probe

_TIMEOUT_SECONDS: Final = 5.0


def grpc_probe(address: str) -> Probe:
    """Makes a probe of grpc.health.v1 for the process at HOST:PORT, without TLS."""

    async def probe() -> bool:
        async with grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            response = await check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
            return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def edge_probe(socket: Path) -> Probe:
    """Makes a probe that succeeds if GET /ready has status 200 on an edge's own socket."""

    async def probe() -> bool:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()

    return probe
