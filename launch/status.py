"""The state of a running Isthmus, made of two looks at its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec

from isthmus.v1.models_pb2 import ModelKind
from launch.status_sources import Look, Scrape

KINDS: Final = {
    ModelKind.MODEL_KIND_TEXT: "text",
    ModelKind.MODEL_KIND_EMBEDDING: "embedding",
    ModelKind.MODEL_KIND_IMAGE: "image",
}
_DURATION: Final = "gen_ai_server_request_duration_seconds_count"
_USAGE: Final = "gen_ai_client_token_usage_sum"
READY: Final = "ready"


class ReplicaStatus(msgspec.Struct, kw_only=True):
    """A replica as the edges see it: `serving` for all of them, `resting` for one at least."""

    upstream: str
    replica: str
    serving: bool
    resting: bool
    calls: int


class ModelStatus(msgspec.Struct, kw_only=True):
    """A model. None: nobody who was asked knows it."""

    model: str
    kind: str | None = None
    ready: bool | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None


class ProcessStatus(msgspec.Struct, kw_only=True):
    """A process. `queue_depth` and `sessions` are a service's, the next two an edge's.

    `requests_running` has the question for the metrics itself.
    """

    source: str
    process: str
    program: str
    version: str
    memory_used_bytes: int
    memory_limit_bytes: int
    resident_bytes: int
    queue_depth: int | None = None
    sessions: int | None = None
    requests_running: int | None = None
    connections: int | None = None


class Rates(msgspec.Struct, kw_only=True):
    """Requests that ended between two looks, and their tokens, for each second.

    `errors` has all failures but those of clients that left.
    """

    seconds: float
    requests: float
    errors: float
    input_tokens: float
    output_tokens: float


class Status(msgspec.Struct, kw_only=True):
    """Everything that `isthmus status` shows."""

    url: str
    ready: bool
    readiness: str
    problems: dict[str, str]
    errors: list[str]
    rates: Rates | None
    replicas: list[ReplicaStatus]
    models: list[ModelStatus]
    processes: list[ProcessStatus]


def status(url: str, seen: Look, before: Look | None) -> Status:
    """Makes the state.

    Args:
        url: The edge.
        seen: The newest look.
        before: An older one, for the rates; None makes none.
    """
    return Status(
        url=url,
        ready=seen.readiness == READY and not seen.errors,
        readiness=seen.readiness,
        problems=seen.problems,
        errors=seen.errors,
        rates=_rates(seen, before) if before is not None else None,
        replicas=_replicas(_edges(seen)),
        models=_models(seen),
        processes=[each for scrape in seen.scrapes for each in _processes(scrape)],
    )


def _edges(seen: Look) -> list[Scrape]:
    return [each for each in seen.scrapes if each.has("isthmus_http_connections")]


def _rates(seen: Look, before: Look) -> Rates | None:
    """None if there is no edge that answered both times."""
    old = {each.source: each for each in _edges(before)}
    pairs = [(each, old[each.source]) for each in _edges(seen) if each.source in old]
    if not pairs:
        return None
    seconds = seen.at - before.at

    def rate(name: str, labels: dict[str, str]) -> float:
        # Below zero: a process was started again.
        grown = sum(max(new.sum(name, **labels) - old.sum(name, **labels), 0) for new, old in pairs)
        return grown / seconds

    requests = rate(_DURATION, {})
    return Rates(
        seconds=seconds,
        requests=requests,
        errors=requests - sum(rate(_DURATION, {"error_type": each}) for each in ("", "cancelled")),
        input_tokens=rate(_USAGE, {"gen_ai_token_type": "input"}),
        output_tokens=rate(_USAGE, {"gen_ai_token_type": "output"}),
    )


def _replicas(edges: list[Scrape]) -> list[ReplicaStatus]:
    def merged(name: str) -> dict[tuple[str, ...], list[float]]:
        groups: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        for edge in edges:
            for group, values in edge.each(name, "upstream", "replica").items():
                groups[group] += values
        return groups

    resting, calls = merged("isthmus_replica_resting"), merged("isthmus_replica_calls")
    return [
        ReplicaStatus(
            upstream=group[0],
            replica=group[1],
            serving=all(values),
            resting=any(resting[group]),
            calls=int(sum(calls[group])),
        )
        for group, values in sorted(merged("isthmus_replica_serving").items())
    ]


def _models(seen: Look) -> list[ModelStatus]:
    """What edges tell of text models, then services of theirs, then ListModels for what lacks."""
    models: dict[str, ModelStatus] = {}

    def of(name: str) -> ModelStatus:
        return models.setdefault(name, ModelStatus(model=name))

    for edge in _edges(seen):
        for name in edge.labels("vllm:num_requests_running", "model_name"):
            model = of(name)
            # An edge knows the engines of replicas that serve.
            model.kind, model.ready = "text", True
            model.running = int(edge.sum("vllm:num_requests_running", model_name=name))
            model.waiting = int(edge.sum("vllm:num_requests_waiting", model_name=name))
            model.kv_cache_usage = edge.sum("vllm:kv_cache_usage_perc", model_name=name)
    for scrape in seen.scrapes:
        for name in scrape.labels("isthmus_model_ready", "model"):
            model = of(name)
            model.ready = bool(model.ready or scrape.sum("isthmus_model_ready", model=name))
    told = {name: model.running is not None for name, model in models.items()}
    for listed in seen.models:
        model = of(listed.id)
        model.kind = KINDS.get(listed.kind)
        model.ready = bool(model.ready or listed.ready)
        if not told.get(listed.id):
            # No edge reports this model, so its numbers are summed over the services.
            model.running = (model.running or 0) + listed.load.running
            model.waiting = (model.waiting or 0) + listed.load.waiting
            if listed.load.HasField("kv_cache"):
                model.kv_cache_usage = max(model.kv_cache_usage or 0, listed.load.kv_cache.usage)
    return [models[name] for name in sorted(models)]


def _processes(scrape: Scrape) -> Iterator[ProcessStatus]:
    is_edge = scrape.has("isthmus_http_connections")
    for process, version in sorted(scrape.each("isthmus_build_info", "process", "version")):
        here = {"process": process} if process else {}

        def count(name: str, there: bool, here: dict[str, str] = here) -> int | None:
            return int(scrape.sum(name, **here)) if there else None

        yield ProcessStatus(
            source=scrape.source,
            process=process,
            program="edge" if is_edge else "inference",
            version=version,
            memory_used_bytes=int(scrape.sum("isthmus_memory_used_bytes", **here)),
            memory_limit_bytes=int(scrape.sum("isthmus_memory_limit_bytes", **here)),
            resident_bytes=int(scrape.sum("process_resident_memory_bytes", **here)),
            queue_depth=count("isthmus_queue_depth", not is_edge),
            sessions=count("isthmus_sessions", not is_edge),
            requests_running=count("isthmus_http_requests_running", is_edge),
            connections=count("isthmus_http_connections", is_edge),
        )
