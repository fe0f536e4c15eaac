"""Chooses the replica for each call, and replays a call whose replica is lost.

Each configured upstream name resolves to one or more addresses; each address is a replica.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import grpc
from msgspec.structs import replace

from edge.config import EdgeConfig
from edge.upstream.channels import channel_credentials
from edge.upstream.replay import may_replay
from edge.upstream.replica import Replica
from edge.upstream.transport import Call, CallOptions, Ended, Receiver, UpstreamRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import Model, ModelKind
from keys import KeyStore

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
RESOLVE_TIMEOUT_SECONDS: Final = 5.0


class ModelNotFoundError(LookupError):
    """No upstream serves a model of this name, which is the only argument."""


class NoReplicaError(Exception):
    """No replica of a model accepts requests now."""


class Upstream:
    """One configured name and its replicas.

    Attributes:
        target: HOST:PORT as configured.
        replicas: By address.
    """

    def __init__(
        self,
        target: str,
        config: EdgeConfig,
        credentials: grpc.ChannelCredentials | None,
        keys: KeyStore | None,
    ) -> None:
        self.target = target
        self._keys = keys
        self._credentials = credentials
        self.replicas: dict[str, Replica] = {}
        self._config = config
        self._lost = asyncio.Event()
        self._resolver = asyncio.create_task(self._keep_resolved())

    @property
    def serving(self) -> bool:
        """Whether any replica accepts requests."""
        return any(replica.serving for replica in self.replicas.values())

    @property
    def known(self) -> bool:
        """Whether any replica has ever listed its models."""
        return any(replica.models for replica in self.replicas.values())

    @property
    def problem(self) -> str:
        """One sentence for each problem of a replica; empty if there is none."""
        problems = {
            replica.problem.text: None for replica in self.replicas.values() if replica.problem
        }
        return "; ".join(problems)

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
                await self._follow(addresses)
            except (OSError, TimeoutError):
                log.warning("cannot resolve %s", self.target)
            except Exception:
                log.exception("cannot follow %s", self.target)
            self._lost.clear()
            pause = self._config.resolve_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self.serving else min(pause, RETRY_SECONDS)):
                    await self._lost.wait()

    async def _resolve(self) -> set[str]:
        host, _, port = self.target.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
        return {_address(family, sockaddr) for family, _, _, _, sockaddr in found}

    async def _follow(self, addresses: set[str]) -> None:
        for replica in self.replicas.values():
            replica.review_keys()
        server_name = self.target.rpartition(":")[0]
        for address in addresses - self.replicas.keys():
            self.replicas[address] = Replica(
                address, self._config, self._credentials, server_name, self._keys, self._lost.set
            )
        for address, replica in self.replicas.items():
            replica.leaving = address not in addresses
        # A name server may drop all addresses that serve, but only briefly.
        others_serve = any(r.serving and not r.leaving for r in self.replicas.values())
        gone = [
            replica
            for replica in self.replicas.values()
            if replica.leaving and not replica.outstanding and (others_serve or not replica.serving)
        ]
        for replica in gone:
            del self.replicas[replica.address]
        await asyncio.gather(*(replica.close() for replica in gone))


class Router:
    """All upstreams of this edge.

    Args:
        config: The edge's configuration.
        keys: The keys that callers of the edge need; None if it is open.

    Attributes:
        replays: Calls that moved to another replica.

    Raises:
        ConfigError: A PEM file cannot be used.
    """

    def __init__(self, config: EdgeConfig, keys: KeyStore | None) -> None:
        self._turn = 0
        self.replays = 0
        self.closed = False
        credentials = channel_credentials(config)
        self.upstreams = [
            Upstream(target, config, credentials, keys) for target in config.upstreams
        ]

    async def close(self) -> None:
        """Ends every call and connection; no call is replayed."""
        self.closed = True
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams))

    def ready(self) -> bool:
        """Whether every upstream has a replica that accepts requests."""
        return all(upstream.serving for upstream in self.upstreams)

    def models(self) -> list[Model]:
        """Every model known, each once, in the order of the configuration."""
        known: dict[str, Model] = {}
        for replica in self._replicas():
            for model in replica.models:
                known.setdefault(model.id, model)
        return list(known.values())

    def find(self, name: str) -> Model:
        """The model with this id or alias.

        Raises:
            ModelNotFoundError: No upstream has it.
            NoReplicaError: No listed model has it, but an upstream has not listed its models yet.
        """
        for upstream in self.upstreams:
            for replica in upstream.replicas.values():
                if (model := replica.by_name.get(name)) is not None:
                    return model
        if not all(upstream.known for upstream in self.upstreams):
            raise NoReplicaError
        raise ModelNotFoundError(name)

    def default_model(self, kind: ModelKind) -> str | None:
        """The id of the only model of a kind; None if there are none or several."""
        ids = [model.id for model in self.models() if model.kind == kind]
        return ids[0] if len(ids) == 1 else None

    def open(self, request: UpstreamRequest, receiver: Receiver, options: CallOptions) -> Call:
        """Starts a call on the least busy replica of its model.

        Raises:
            ModelNotFoundError: No upstream has the model.
            NoReplicaError: No replica of the model accepts requests.
        """
        replica = self._least_busy(request.model)
        if replica is None:
            self.find(request.model)
            raise NoReplicaError
        return _RoutedCall(self, replica, request, receiver, options)

    def _least_busy(self, name: str, but: Replica | None = None) -> Replica | None:
        """The replica that serves a model and has the fewest calls in flight; None for none."""
        candidates = [
            replica
            for replica in self._replicas()
            if replica.serving and replica is not but and name in replica.by_name
        ]
        # A replica that fails at once always has the fewest calls in flight, so skip it while it
        # rests, and one that is about to stop, unless it is the last.
        if len(candidates) > 1:
            candidates = [replica for replica in candidates if not replica.resting] or candidates
            candidates = [replica for replica in candidates if not replica.leaving] or candidates
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        self._turn += 1
        first = self._turn % len(candidates)
        return min(candidates[first:] + candidates[:first], key=lambda r: r.outstanding)

    def _replicas(self) -> Iterator[Replica]:
        for upstream in self.upstreams:
            yield from upstream.replicas.values()


class _RoutedCall(Call):
    """A call that may move to another replica once (replay.py).

    The transport passes output directly to the receiver; only the end passes through this class.
    """

    __slots__ = (
        "_call",
        "_deadline",
        "_options",
        "_receiver",
        "_replayed",
        "_replica",
        "_request",
        "_router",
    )

    def __init__(
        self,
        router: Router,
        replica: Replica,
        request: UpstreamRequest,
        receiver: Receiver,
        options: CallOptions,
    ) -> None:
        self._router = router
        self._request = request
        self._receiver = receiver
        self._options = options
        self._deadline = time.monotonic() + options.timeout_seconds
        self._replayed = False
        self._start(replica, options)

    def cancel(self) -> None:
        if self._release() is not None:
            self._call.cancel()

    def _start(self, replica: Replica, options: CallOptions) -> None:
        self._replica: Replica | None = replica
        replica.outstanding += 1
        self._call = replica.open(self._request, self._receiver, self._on_ended, options)

    def _on_ended(self, ended: Ended) -> None:
        replica = self._release()
        if replica is None:
            return  # The call was cancelled.
        replica.note(ended.status)
        if ended.status.code and not self._replayed and self._replay(replica, ended):
            return
        self._receiver.on_end(ended.status)

    def _replay(self, failed: Replica, ended: Ended) -> bool:
        request = self._request
        is_stream = isinstance(request, GenerateRequest) and not request.output.single_message
        remaining = self._deadline - time.monotonic()
        if self._router.closed or remaining <= 0:
            return False
        if not may_replay(ended, reports_start=is_stream):
            return False
        other = self._router._least_busy(request.model, but=failed)
        if other is None:
            return False
        self._replayed = True
        self._router.replays += 1
        self._start(other, replace(self._options, timeout_seconds=remaining))
        return True

    def _release(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.outstanding -= 1
        return replica


def _address(family: int, sockaddr: tuple[Any, ...]) -> str:
    """A resolved address in gRPC's target syntax."""
    host, port = sockaddr[:2]
    return f"ipv6:[{host}]:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"
