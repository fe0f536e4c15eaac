"""Which replica answers for a model, and what happens when one is lost.

Each configured upstream name stands for all addresses behind it; each address is a replica.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.rpc import status_pb2

from edge.config import EdgeConfig
from edge.openai import errors
from edge.upstream.replica import Replica
from edge.upstream.transport import Call, CallOptions, Receiver, status_of
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.models_pb2 import Model, ModelKind

log = logging.getLogger(__name__)

RESOLVE_SECONDS: Final = 30.0
RESOLVE_AGAIN_SECONDS: Final = 1.0
RESOLVE_TIMEOUT_SECONDS: Final = 5.0
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE.value[0]


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
        self._resolver = asyncio.create_task(self._keep_resolved())

    @property
    def serving(self) -> bool:
        """Whether any replica takes requests."""
        return any(replica.serving for replica in self.replicas.values())

    async def close(self) -> None:
        """Ends every call and connection."""
        self._resolver.cancel()
        await asyncio.wait([self._resolver])
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    async def _keep_resolved(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_SECONDS):
                    await self._resolve()
            except (OSError, TimeoutError):
                log.warning("cannot resolve %s", self.target)
            await asyncio.sleep(RESOLVE_SECONDS if self.serving else RESOLVE_AGAIN_SECONDS)

    async def _resolve(self) -> None:
        host, _, port = self.target.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
        addresses = {_address(family, sockaddr) for family, _, _, _, sockaddr in found}
        for address in addresses - self.replicas.keys():
            self.replicas[address] = Replica(address, self._config, host)
        for address in self.replicas.keys() - addresses:
            # A name server may forget an address for a moment: one that still serves stays.
            if not self.replicas[address].serving:
                await self.replicas.pop(address).close()


class Router:
    """All upstreams of this edge."""

    def __init__(self, config: EdgeConfig) -> None:
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
        for model in self.models():
            if name in names_of(model):
                return model
        if any(not r.models for r in self._replicas()) or not self.models():
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
        return _RoutedCall(self, self.choose(request.model), request, receiver, options)

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
                return response
            except grpc.aio.AioRpcError as error:
                tried.add(replica)
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not self._has_other(
                    request.model, tried
                ):
                    raise UpstreamError(status_of(error)) from error
            finally:
                replica.outstanding -= 1

    def choose(self, name: str, tried: set[Replica] | None = None) -> Replica:
        """The least busy replica that serves a model and was not tried.

        Raises:
            OpenAIError: The model is unknown (404) or no such replica serves (503).
        """
        candidates = self._candidates(name, tried or set())
        if not candidates:
            self.find(name)
            raise errors.overloaded()
        return min(candidates, key=lambda replica: replica.outstanding)

    def _has_other(self, name: str, tried: set[Replica]) -> bool:
        return bool(self._candidates(name, tried))

    def _candidates(self, name: str, tried: set[Replica]) -> list[Replica]:
        return [
            replica
            for replica in self._replicas()
            if replica.serving
            and replica not in tried
            and any(name in names_of(model) for model in replica.models)
        ]

    def _replicas(self) -> Iterator[Replica]:
        for upstream in self.upstreams:
            yield from upstream.replicas.values()


class UpstreamError(Exception):
    """A call failed with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class _RoutedCall(Call, Receiver):
    """A generation that moves to another replica if its own is lost before it was admitted."""

    __slots__ = ("_call", "_heard", "_options", "_receiver", "_replica", "_request", "_router")

    def __init__(
        self,
        router: Router,
        replica: Replica,
        request: GenerateRequest,
        receiver: Receiver,
        options: CallOptions,
    ) -> None:
        self._router = router
        self._request = request
        self._receiver = receiver
        self._options = options
        self._heard = False
        self._start(replica)

    def on_text(self, text: str) -> None:
        self._receiver.on_text(text)

    def on_part(self, part: GenerateResponse) -> None:
        self._heard = True
        self._receiver.on_part(part)

    def on_end(self, status: status_pb2.Status) -> None:
        failed = self._release()
        if failed is not None and self._may_move(status):
            others = self._router._candidates(self._request.model, {failed})
            if others:
                self._heard = True  # once
                self._start(min(others, key=lambda replica: replica.outstanding))
                return
        self._receiver.on_end(status)

    def cancel(self) -> None:
        if self._release() is not None:
            self._call.cancel()

    def _start(self, replica: Replica) -> None:
        self._replica: Replica | None = replica
        replica.outstanding += 1
        self._call = replica.open(self._request, self, self._options)

    def _release(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.outstanding -= 1
        return replica

    def _may_move(self, status: status_pb2.Status) -> bool:
        # A plain answer is heard of only when it is complete: whether a lost one was admitted
        # cannot be known, so it moves only when the service itself turned it away.
        turned_away = bool(status.details) or not self._request.output.single_message
        return status.code == _UNAVAILABLE and not self._heard and turned_away


def names_of(model: Model) -> Iterator[str]:
    """The id and every alias."""
    yield model.id
    for alias in model.aliases:
        yield alias.name


def _address(family: int, sockaddr: tuple[Any, ...]) -> str:
    """The form in which gRPC takes an address that is already resolved."""
    host, port = sockaddr[:2]
    return f"ipv6:[{host}]:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"
