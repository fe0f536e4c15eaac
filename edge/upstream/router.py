"""Chooses the replica for each call, and replays a call whose replica is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from edge.config import EdgeConfig
from edge.upstream import affinity
from edge.upstream.channels import channel_credentials
from edge.upstream.replay import may_replay
from edge.upstream.replica import Replica
from edge.upstream.transport import Call, CallOptions, Ended, Receiver, UpstreamRequest
from edge.upstream.upstream import Upstream
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import Model, ModelKind
from keys import KeyStore


class ModelNotFoundError(LookupError):
    """No upstream serves a model of this name, which is the only argument."""


class NoReplicaError(Exception):
    """No replica of a model accepts requests now."""


class Router:
    """All upstreams of this edge.

    Args:
        config: The edge's configuration.
        keys: The keys that callers of the edge need; None if it is open.

    Attributes:
        replays: Calls that moved to another replica.
        affinity: Calls that went to the "first" replica of their prefix, or to the "next" because
            that one was too busy; only where there was a choice.

    Raises:
        ConfigError: A PEM file cannot be used.
    """

    def __init__(self, config: EdgeConfig, keys: KeyStore | None) -> None:
        self._turn = 0
        self.replays = 0
        self.affinity = Counter(first=0, next=0)
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
        """Starts a call on the replica of its model that has its prefix (affinity.py).

        Calls without a prefix, such as embeddings, images and counts of tokens, get the least busy
        replica.

        Raises:
            ModelNotFoundError: No upstream has the model.
            NoReplicaError: No replica of the model accepts requests.
        """
        candidates = self._candidates(request.model)
        if not candidates:
            self.find(request.model)
            raise NoReplicaError
        replica = candidates[0]
        if len(candidates) > 1:
            replica = self._choose(candidates, request, options)
        deadline = time.monotonic() + options.timeout_seconds
        call = _RoutedCall(self, request, receiver, options, deadline)
        call.start(replica, options)
        return call

    def _choose(
        self, candidates: Sequence[Replica], request: UpstreamRequest, options: CallOptions
    ) -> Replica:
        key = b""
        if isinstance(request, GenerateRequest):
            key = affinity.key_of(request, options.affinity)
        if not key:
            return self._least_busy(candidates)
        replica, is_first = affinity.choose(key, candidates)
        self.affinity["first" if is_first else "next"] += 1
        return replica

    def _candidates(self, name: str, but: Replica | None = None) -> list[Replica]:
        """The replicas that serve a model, without those that should rather get no calls."""
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
        return candidates

    def _least_busy(self, candidates: Sequence[Replica]) -> Replica:
        """The replica with the fewest calls in flight; several of them take turns."""
        self._turn += 1
        first = self._turn % len(candidates)
        return min([*candidates[first:], *candidates[:first]], key=lambda r: r.outstanding)

    def _replicas(self) -> Iterator[Replica]:
        for upstream in self.upstreams:
            yield from upstream.replicas.values()


class _RoutedCall(Struct, eq=False):
    """A call that may move to another replica once (replay.py).

    The transport passes output directly to the receiver; only the end passes through this class.
    """

    # A struct would print its members, the prompt among them.
    __repr__ = object.__repr__

    _router: Router
    _request: UpstreamRequest
    _receiver: Receiver
    _options: CallOptions
    _deadline: float
    _replayed: bool = False
    _call: Call | None = None
    _replica: Replica | None = None

    def cancel(self) -> None:
        """See Call."""
        # The call has `_on_ended`: a circle, in which Python would keep the response.
        call, self._call = self._call, None
        if self._release() is not None and call is not None:
            call.cancel()

    def start(self, replica: Replica, options: CallOptions) -> None:
        """Opens it at a replica."""
        self._replica = replica
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
        others = self._router._candidates(request.model, but=failed)
        if not others:
            return False
        self._replayed = True
        self._router.replays += 1
        other = self._router._least_busy(others)
        self.start(other, replace(self._options, timeout_seconds=remaining))
        return True

    def _release(self) -> Replica | None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.outstanding -= 1
        return replica
