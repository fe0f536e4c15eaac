"""Which replica answers for a model, and what happens when one is lost.

Each configured upstream name stands for all addresses behind it; each address is a replica.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any, Final

import grpc
from google.rpc import status_pb2

from edge.config import EdgeConfig
from edge.openai import errors
from edge.openai.errors.rpc_status import reason_of
from edge.upstream.replica import Replica
from edge.upstream.routed_call import TURNED_AWAY, RoutedCall
from edge.upstream.transport import (
    SILENCE_SECONDS,
    Call,
    CallOptions,
    Receiver,
    status_of,
    transport_status,
)
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.models_pb2 import Model, ModelKind

log = logging.getLogger(__name__)

RESOLVE_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 1.0
RESOLVE_TIMEOUT_SECONDS: Final = 5.0


class Upstream:
    """One configured name and the replicas behind it.

    Attributes:
        target: HOST:PORT as configured.
        replicas: By address.
    """

    def __init__(self, target: str, config: EdgeConfig) -> None:
        self.target = target
        self.replicas: dict[str, Replica] = {}
        self._config = config
        self._lost = asyncio.Event()
        self._resolver = asyncio.create_task(self._keep_resolved())

    @property
    def serving(self) -> bool:
        """Whether any replica takes requests."""
        return any(replica.serving for replica in self.replicas.values())

    @property
    def known(self) -> bool:
        """Whether any replica has ever told its models."""
        return any(replica.models for replica in self.replicas.values())

    async def close(self) -> None:
        """Ends every call and connection."""
        self._resolver.cancel()
        await asyncio.wait([self._resolver])
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    async def _keep_resolved(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_SECONDS):
                    addresses = await self._resolve()
            except (OSError, TimeoutError):
                log.warning("cannot resolve %s", self.target)
            else:
                await self._follow(addresses)
            self._lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE_SECONDS if self.serving else RETRY_SECONDS):
                    await self._lost.wait()

    async def _resolve(self) -> set[str]:
        host, _, port = self.target.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
        return {_address(family, sockaddr) for family, _, _, _, sockaddr in found}

    async def _follow(self, addresses: set[str]) -> None:
        server_name = self.target.rpartition(":")[0]
        for address in addresses - self.replicas.keys():
            self.replicas[address] = Replica(address, self._config, server_name, self._lost.set)
        for address in self.replicas.keys() - addresses:
            # Name servers forget an address before its calls have ended, or for a moment only.
            replica = self.replicas[address]
            if not replica.serving and not replica.outstanding:
                del self.replicas[address]
                await replica.close()


class Router:
    """All upstreams of this edge."""

    def __init__(self, config: EdgeConfig) -> None:
        self._turn = 0
        self.upstreams = [Upstream(target, config) for target in config.upstreams]

    async def close(self) -> None:
        """Ends every call and connection."""
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams))

    def ready(self) -> bool:
        """Whether every upstream has a replica that takes requests."""
        return all(upstream.serving for upstream in self.upstreams)

    def models(self) -> list[Model]:
        """Every model known, each once, in the order of the configuration."""
        known: dict[str, Model] = {}
        for replica in self._replicas():
            for model in replica.models:
                known.setdefault(model.id, model)
        return list(known.values())

    def find(self, name: str) -> Model:
        """The model that answers to a name.

        Raises:
            OpenAIError: 404, or 503 while some upstream has not yet told its models.
        """
        for upstream in self.upstreams:
            for replica in upstream.replicas.values():
                if (model := replica.by_name.get(name)) is not None:
                    return model
        if not all(upstream.known for upstream in self.upstreams):
            raise errors.overloaded()
        raise errors.unknown_model(name)

    def default_model(self, kind: ModelKind) -> str | None:
        """The id of the only model of a kind; None when there are none or several."""
        ids = [model.id for model in self.models() if model.kind == kind]
        return ids[0] if len(ids) == 1 else None

    def open(self, request: GenerateRequest, receiver: Receiver, options: CallOptions) -> Call:
        """Starts a generation on the least busy replica of its model.

        Raises:
            OpenAIError: The model is unknown (404) or no replica of it serves (503).
        """
        first = self.choose(request.model)

        def another(failed: Replica) -> Replica | None:
            return self._least_busy(request.model, {failed})

        return RoutedCall(first, another, request, receiver, options)

    async def embed(self, request: EmbedRequest, options: CallOptions) -> EmbedResponse:
        """Embeds a batch; being idempotent it may try a second replica.

        Raises:
            OpenAIError: The model is unknown (404) or no replica of it serves (503).
            UpstreamError: The call failed.
        """
        tried: set[Replica] = set()
        while True:
            replica = self.choose(request.model, tried)
            replica.outstanding += 1
            try:
                response: EmbedResponse = await replica.stub.Embed(
                    request, timeout=options.timeout_seconds, metadata=replica.metadata(options)
                )
                replica.note(status_pb2.Status())
                return response
            except grpc.aio.AioRpcError as error:
                status = status_of(error)
                replica.note(status)
                tried.add(replica)
                lost = error.code() is grpc.StatusCode.UNAVAILABLE
                if not lost or not self._another(request.model, tried):
                    raise UpstreamError(status) from error
            finally:
                replica.outstanding -= 1

    async def generate_image(
        self, request: GenerateImageRequest, options: CallOptions
    ) -> AsyncGenerator[GenerateImageResponse, None]:
        """Draws; moves to another replica only while nothing was heard. Closing it stops the work.

        Raises:
            OpenAIError: The model is unknown (404) or no replica of it serves (503).
            UpstreamError: The call failed.
        """
        deadline = time.monotonic() + options.timeout_seconds
        tried: set[Replica] = set()
        heard = False
        while True:
            replica = self.choose(request.model, tried)
            replica.outstanding += 1
            call = replica.stub.GenerateImage(
                request,
                timeout=max(0.0, deadline - time.monotonic()),
                metadata=replica.metadata(options),
            )
            try:
                while (part := await _next_part(call)) is not None:
                    heard = True
                    yield part
                replica.note(status_pb2.Status())
                return
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    log.warning("%s was silent for %.0f s", replica.address, SILENCE_SECONDS)
                    status = transport_status(grpc.StatusCode.UNAVAILABLE, "No sign of life came.")
                else:
                    status = status_of(error)
                replica.note(status)
                tried.add(replica)
                begun = heard or reason_of(status) not in (None, *TURNED_AWAY)
                lost = status.code == grpc.StatusCode.UNAVAILABLE.value[0]
                if begun or not lost or not self._another(request.model, tried):
                    raise UpstreamError(status) from error
            finally:
                call.cancel()
                replica.outstanding -= 1

    def choose(self, name: str, tried: set[Replica] | None = None) -> Replica:
        """The least busy replica that serves a model and was not tried.

        Raises:
            OpenAIError: The model is unknown (404) or no such replica serves (503).
        """
        replica = self._least_busy(name, tried or set())
        if replica is None:
            self.find(name)
            raise errors.overloaded()
        return replica

    def _another(self, name: str, tried: set[Replica]) -> bool:
        """Whether there is a second to try; a request that kills services must not meet all."""
        return len(tried) < 2 and self._least_busy(name, tried) is not None

    def _least_busy(self, name: str, tried: set[Replica]) -> Replica | None:
        candidates = [
            replica
            for upstream in self.upstreams
            for replica in upstream.replicas.values()
            if replica.serving and replica not in tried and name in replica.by_name
        ]
        # One that keeps failing is always the least busy: it rests, unless it is the last.
        if len(candidates) > 1:
            candidates = [replica for replica in candidates if not replica.resting] or candidates
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        self._turn += 1
        first = self._turn % len(candidates)
        return min(candidates[first:] + candidates[:first], key=lambda r: r.outstanding)

    def _replicas(self) -> Iterator[Replica]:
        for upstream in self.upstreams:
            yield from upstream.replicas.values()


class UpstreamError(Exception):
    """A call failed with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def _address(family: int, sockaddr: tuple[Any, ...]) -> str:
    """The form in which gRPC takes an address that is already resolved."""
    host, port = sockaddr[:2]
    return f"ipv6:[{host}]:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"


async def _next_part(
    call: grpc.aio.UnaryStreamCall[GenerateImageRequest, GenerateImageResponse],
) -> GenerateImageResponse | None:
    """The next part that says something; None at the end.

    Raises:
        TimeoutError: Not even a sign of life came.
    """
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            part = await call.read()
        if not isinstance(part, GenerateImageResponse):
            return None  # grpc.aio.EOF
        if part.ListFields():
            return part
