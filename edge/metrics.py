"""Metrics of an edge process: what is counted, and what is read when somebody asks.

  isthmus_...                    labels              what
  -----------------------------  ------------------  ----------------------------------------------
  http_responses_total           method, path, code  responses; code 499: the client left before
  http_requests_running                              requests whose response is not complete
  http_connections                                   open connections
  exchanges_cancelled_total      stage               requests for models whose client left:
                                                     waiting (not admitted), before_output, output
  replica_serving                upstream, replica   1 if it takes requests
  replica_resting                upstream, replica   1 while others are preferred, because it failed
  replica_calls                  upstream, replica   calls in flight
  affinity_total                 result              text calls to one of several replicas: the
                                                     "first" of their prefix, or the "next", because
                                                     that one was too busy
  replays_total                                      calls that moved to another replica
  files, files_bytes                                 images handed out by URL, at the last sweep

Those of every program are in contract/process_metrics.py, gen_ai_* in contract/request_metrics.py.

vllm:* are what schedulers in front of several servers read (llm-d, the inference extension of
Kubernetes' Gateway API, KEDA), in vLLM's names: the engines of each text model, as their services
last told. Of several replicas, requests are added up, and the usage of the cache is the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.core import Metric

from contract.metrics import Counters, counter, gauge, one
from contract.process_metrics import ProcessMetrics
from contract.request_metrics import RequestMetrics, Spent
from edge.upstream.router import ModelNotFoundError, NoReplicaError
from isthmus.v1.models_pb2 import Load, ModelKind

if TYPE_CHECKING:
    from edge.state import Edge
    from edge.upstream.replica import Replica

# `code` of a request whose client left before its response began.
CLIENT_LEFT: Final = 499
_REPLICA: Final = ("upstream", "replica")
_ENGINE: Final = ("model_name", "engine")


class EdgeMetrics:
    """The metrics of one process.

    Args:
        edge: Its state, which is read when somebody asks.

    Attributes:
        requests: The histograms of requests for models.
        process: What every program has.
        connections: Counts the open connections.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.connections: Callable[[], int] = lambda: 0
        self.requests = RequestMetrics()
        self.process = ProcessMetrics(
            edge.memory, edge.keys.reloads if edge.keys else {}, self.requests.families
        )
        self._responses: dict[tuple[str, str, int], int] = {}
        self._cancelled = Counters(
            "isthmus_exchanges_cancelled",
            "Requests for models whose client left, by how far they had come.",
            ("stage",),
        )

    def responded(self, method: str, path: str, code: int) -> None:
        """Counts a response.

        Args:
            method: Of the request.
            path: The route's template; "" for an unknown path.
            code: HTTP status, or CLIENT_LEFT.
        """
        # A client can make up any number of methods and paths.
        key = (method, path, code) if path else ("", "unknown", code)
        self._responses[key] = self._responses.get(key, 0) + 1

    def exchange_ended(
        self, operation: str, name: str, started: float, error: str, spent: Spent | None
    ) -> None:
        """Counts a request for a model; the arguments are those of RequestMetrics.ended."""
        try:
            model = self._edge.router.find(name).id
        except (ModelNotFoundError, NoReplicaError):
            model = ""  # It is not served any more.
        self.requests.ended(operation, name, model, time.monotonic() - started, error, spent)

    def cancelled(self, stage: str) -> None:
        """Counts a request for a model whose client left."""
        self._cancelled.of(stage).add()

    def collect(self) -> Iterator[Metric]:
        """All families of this process as they are now, without the engines'."""
        edge = self._edge
        for family in self.requests.families:
            yield family.collect()
        yield counter(
            "isthmus_http_responses",
            f"Responses. Code {CLIENT_LEFT}: the client left before.",
            [((*names, str(code)), n) for (*names, code), n in self._responses.items()],
            ("method", "path", "code"),
        )
        yield self._cancelled.collect()
        yield gauge(
            "isthmus_http_requests_running",
            "Requests whose response is not complete.",
            one(edge.requests),
        )
        yield gauge("isthmus_http_connections", "Open connections.", one(self.connections()))
        yield from self._replicas()
        yield counter(
            "isthmus_replays", "Calls that moved to another replica.", one(edge.router.replays)
        )
        yield counter(
            "isthmus_affinity",
            "Calls that were sent where their prefix is, or to the next replica.",
            [((result,), count) for result, count in edge.router.affinity.items()],
            ("result",),
        )
        yield gauge("isthmus_files", "Images at the last sweep.", one(edge.files.count))
        yield gauge("isthmus_files_bytes", "Their size.", one(edge.files.bytes))
        yield from self.process.collect()

    def _replicas(self) -> Iterator[Metric]:
        replicas = [
            ((upstream.target, address), replica)
            for upstream in self._edge.router.upstreams
            for address, replica in upstream.replicas.items()
        ]
        for name, text, value in _REPLICA_GAUGES:
            yield gauge(name, text, [(names, value(r)) for names, r in replicas], _REPLICA)

    def engines(self) -> Iterator[Metric]:
        """The families that schedulers read."""
        loads = self._loads()

        def each(value: Callable[[list[Load]], float]) -> list[tuple[tuple[str, str], float]]:
            return [((name, "0"), value(told)) for name, told in loads.items() if told]

        yield gauge(
            "vllm:num_requests_running",
            "Number of requests in model execution batches.",
            each(lambda told: sum(load.running for load in told)),
            _ENGINE,
        )
        yield gauge(
            "vllm:num_requests_waiting",
            "Number of requests waiting to be processed.",
            each(lambda told: sum(load.waiting for load in told)),
            _ENGINE,
        )
        yield gauge(
            "vllm:kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            each(lambda told: sum(load.kv_cache.usage for load in told) / len(told)),
            _ENGINE,
        )
        yield gauge(
            "vllm:cache_config_info",
            "The blocks of the KV cache of one engine.",
            [
                ((name, "0", str(cache.block_size), str(cache.blocks)), 1)
                for name, told in loads.items()
                if told and (cache := told[0].kv_cache).blocks
            ],
            (*_ENGINE, "block_size", "num_gpu_blocks"),
        )
        yield gauge(
            "vllm:lora_requests_info",
            "The time of the last look; no adapters are served.",
            [(("0", "", ""), time.time())],
            ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )

    def told(self) -> list[object]:
        """The states that `engines` renders; equal to an earlier value if none has changed."""
        return [
            (replica.serving, replica.models, replica.loads)
            for upstream in self._edge.router.upstreams
            for replica in upstream.replicas.values()
        ]

    def _loads(self) -> dict[str, list[Load]]:
        """The loads of each text model, by its id: one for each serving replica."""
        loads: dict[str, list[Load]] = {}
        for upstream in self._edge.router.upstreams:
            for replica in upstream.replicas.values():
                for model in replica.models if replica.serving else ():
                    if model.kind == ModelKind.MODEL_KIND_TEXT and model.id in replica.loads:
                        loads.setdefault(model.id, []).append(replica.loads[model.id])
        return loads


_REPLICA_GAUGES: Final[tuple[tuple[str, str, Callable[[Replica], float]], ...]] = (
    ("isthmus_replica_serving", "1 if it takes requests.", lambda r: r.serving),
    (
        "isthmus_replica_resting",
        "1 while other replicas are preferred, because it failed.",
        lambda r: r.resting,
    ),
    ("isthmus_replica_calls", "Calls in flight.", lambda r: r.outstanding),
)
