"""A server with the shared engine that serves vllm.grpc.engine, and a client of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference.config import ModelConfig
from inference.engines.base import TextEngine
from inference.server import InferenceServer
from tests.conftest import running_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from smg_grpc_proto import vllm_engine_pb2_grpc as smg_grpc


@dataclass(frozen=True)
class Face:
    """A server with the shared engine, and what a gateway sees of it."""

    server: InferenceServer
    channel: grpc.aio.Channel
    stub: Any

    def counted(self, name: str) -> float:
        """The value of a metric; `name` has its labels."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.server.metrics().decode(), re.M)
        return float(found[1]) if found else 0.0


@asynccontextmanager
async def face(
    engine: TextEngine, keys: Path | None = None, key: str = "", **settings: Any
) -> AsyncIterator[Face]:
    async def nothing(*_: object) -> None:
        """The engine runs already, and other tests use it afterwards."""

    model = ModelConfig(id="smollm2", engine="vllm", source="shared", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.server.create_engine", lambda *_: engine)
        patch.setattr(engine, "start", nothing)
        patch.setattr(engine, "close", nothing)
        gateway = {"gateway_listen": "127.0.0.1:0", "drain_seconds": 100.0}
        async with running_server(model, keys=keys, **gateway) as server:
            async with connected(server.gateway_port, key) as channel:
                yield Face(server, channel, smg_grpc.VllmEngineStub(channel))


class Bearer:
    """Adds a key to each call."""

    def __init__(self, key: str) -> None:
        self._metadata = grpc.aio.Metadata(("authorization", f"Bearer {key}"))

    async def add(self, continuation: Any, details: Any, message: Any) -> Any:
        return await continuation(details._replace(metadata=self._metadata), message)


class UnaryBearer(Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = Bearer.add


class StreamBearer(Bearer, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = Bearer.add


@asynccontextmanager
async def connected(port: int, key: str = "") -> AsyncIterator[grpc.aio.Channel]:
    interceptors = [UnaryBearer(key), StreamBearer(key)] if key else []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as made:
        yield made
