"""The loads, and the figures that a run of one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench import measure
from bench.processes import ROOT
from bench.subject import Running, Source

PACED_STEP_SECONDS: Final = 0.01
GROWTH_STEP_SECONDS: Final = 0.02
HELD_STEP_SECONDS: Final = 0.25
OVERLOAD_TOKENS_PER_STEP: Final = 5
# The resolution of event loop timers.
_TIMER_SECONDS: Final = 0.001
_STREAMS: Final = 64
# Seconds beyond the load's duration in which responses may end.
_CLIENT_SPARE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Scenario:
    """One load.

    Attributes:
        name: Its name on the command line and in the results.
        source: The token source behind the gateway.
        load: Fields of bench.client.Spec.
        half_of: The name of another scenario of the same pass. The source's pace is half of the
            tokens a second that the subject reached in it.
        only_ours: Whether peers are left out.
    """

    name: str
    source: Source
    load: Mapping[str, Any] = field(default_factory=dict)
    half_of: str = ""
    only_ours: bool = False

    @property
    def measures_open_streams(self) -> bool:
        """Whether memory is measured while all streams are open."""
        return self.load.get("warm_rounds") == 0


def all_scenarios(*, quick: bool) -> tuple[Scenario, ...]:
    """Returns all scenarios.

    "saturated": 64 streams of a source that is as fast as its reader.
    "overload": the same with five tokens for each stream in each step, and 25 further streams a
    second. In a CPU second, the scripted engine makes more than five times as many tokens as an
    edge can write chunks, so an edge keeps up only by joining tokens.
    "half-load": a source with half of the pace that the same subject reached in "saturated".
    "growth-N": N streams of 50 tokens a second each.
    "pace-N": 64 streams of N tokens a second each.

    Args:
        quick: Whether each takes only a few seconds, with fewer tokens and streams.
    """
    seconds = 1.0 if quick else 6.0
    tokens = 32 if quick else 128
    held = 128 if quick else 1024
    counts = (1, 16, 64) if quick else (1, 16, 64, 256, 1024)
    paces = () if quick else (20, 200)
    streams = {"mode": "streams", "tokens": tokens, "seconds": seconds}
    short = Source(16)
    vectors = Source(16, dimensions=1024)
    growth = Source(tokens // 2, GROWTH_STEP_SECONDS)
    flat = {**streams, "connections": _STREAMS}
    embeddings = {"mode": "embeddings", "seconds": seconds / 2}
    return (
        Scenario("paced", Source(tokens, PACED_STEP_SECONDS), {**streams, "connections": _STREAMS}),
        Scenario("saturated", Source(tokens), flat),
        Scenario(
            "overload",
            Source(tokens, tokens_per_step=OVERLOAD_TOKENS_PER_STEP),
            {**flat, "rate": 25.0},
        ),
        Scenario(
            "half-load",
            Source(tokens),
            {**flat, "rate": 25.0},
            half_of="saturated",
            only_ours=True,
        ),
        Scenario("plain", short, {"mode": "plain", "connections": 64, "seconds": seconds}),
        Scenario("ttft", short, {"mode": "rate", "rate": 25.0, "tokens": 16, "seconds": seconds}),
        Scenario(
            "held",
            Source(tokens // 4, HELD_STEP_SECONDS),
            {**streams, "tokens": tokens // 4, "connections": held, "warm_rounds": 0, "seconds": 0},
        ),
        *(
            Scenario(
                f"growth-{count}",
                growth,
                {**streams, "tokens": growth.tokens, "connections": count, "seconds": seconds / 4},
            )
            for count in counts
        ),
        *(
            Scenario(
                f"pace-{pace}",
                Source(pace, 1 / pace),
                {**streams, "tokens": pace, "connections": _STREAMS, "seconds": seconds / 4},
            )
            for pace in paces
        ),
        Scenario("embeddings-base64", vectors, {**embeddings, "encoding": "base64"}, "", True),
        Scenario("embeddings-float", vectors, {**embeddings, "encoding": "float"}, "", True),
    )


def half_pace(source: Source, tokens_per_second: float) -> Source:
    """Returns the source with half of the pace that `_STREAMS` streams reached together."""
    step = 2 * _STREAMS / tokens_per_second
    return Source(source.tokens, max(round(step / _TIMER_SECONDS), 1) * _TIMER_SECONDS)


def run(scenario: Scenario, running: Running) -> dict[str, Any]:
    """Runs the load client against a started subject.

    CPU seconds are measured at the client's marks, at which no request runs.

    Returns:
        The client's result with memory, CPU seconds and `figures` added.
    """
    embeds = scenario.load["mode"] == "embeddings"
    spec = {
        **scenario.load,
        "url": running.url,
        "model": running.embedding_model if embeds else running.model,
        "key": running.key,
    }
    spec.setdefault("limit_seconds", float(spec.get("seconds", 0)) + _CLIENT_SPARE_SECONDS)
    memory = {"before": _memory(running)}
    cpu: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {"errors": {}}
    with _client(spec) as client:
        for message in _messages(client):
            mark = message.get("mark")
            if mark == "begin":
                cpu["begin"] = measure.cpu_seconds(running.groups)
                _begin(client)
            elif mark == "held" and scenario.measures_open_streams:
                memory["held"] = _memory(running)
            elif mark == "end":
                cpu["end"] = measure.cpu_seconds(running.groups)
            elif "result" in message:
                result = message["result"]
    memory["after"] = _memory(running)
    if client.returncode:
        result["errors"][f"the client ended with {client.returncode}"] = 1
    if not measure.alive(running.groups):
        result["errors"]["a process of the subject ended"] = 1
    if "held" in memory and "edge" in memory["held"]:
        grown = memory["held"]["edge"]["rss"] - memory["before"]["edge"]["rss"]
        result["edge_bytes_per_stream"] = grown / spec["connections"]
    result["memory_bytes"] = memory
    if "end" in cpu and "seconds" in result:
        result["cpu_seconds"] = {
            group: cpu["end"][group] - begun for group, begun in cpu["begin"].items()
        }
        result["figures"] = figures(result)
    return result


def _client(spec: Mapping[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.client", json.dumps(spec)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def _messages(client: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    for line in client.stdout or ():
        yield json.loads(line)


def _begin(client: subprocess.Popen[str]) -> None:
    if client.stdin is not None:
        client.stdin.write("go\n")
        client.stdin.flush()


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Computes the figures of the tables: CPU in microseconds, times in milliseconds."""
    cpu = result["cpu_seconds"]
    edge, worker = cpu.get("edge"), cpu.get("worker", 0.0) + cpu.get("source", 0.0)
    seconds, chunks, tokens = result["seconds"], result["chunks"], result["tokens"]
    shown: dict[str, float] = {"requests_per_s": result["requests"] / seconds}
    if tokens:
        shown["tokens_per_s"] = tokens / seconds
        shown["chunks_per_s"] = chunks / seconds
        shown["tokens_per_chunk"] = tokens / chunks
        shown["worker_us_per_token"] = worker / tokens * 1e6
        shown["engine_us_per_token"] = cpu.get(measure.ENGINE, 0.0) / tokens * 1e6
        shown["client_us_per_chunk"] = result["client_cpu_seconds"] / chunks * 1e6
    if result["requests"]:
        shown["worker_us_per_request"] = worker / result["requests"] * 1e6
    if edge and tokens:
        shown["edge_us_per_chunk"] = edge / chunks * 1e6
        shown["edge_us_per_token"] = edge / tokens * 1e6
        shown["edge_and_worker_us_per_token"] = (edge + worker) / tokens * 1e6
        shown["chunks_per_edge_cpu_s"] = chunks / edge
        shown["tokens_per_edge_cpu_s"] = tokens / edge
    if edge and result["requests"]:
        shown["edge_us_per_request"] = edge / result["requests"] * 1e6
        shown["requests_per_edge_cpu_s"] = result["requests"] / edge
    for kind in ("ttft", "gap", "latency"):
        for percentile in ("p50", "p99"):
            if percentile in result[f"{kind}_ms"]:
                shown[f"{kind}_{percentile}_ms"] = result[f"{kind}_ms"][percentile]
    memory = result["memory_bytes"]
    if "edge" in memory["after"]:
        shown["edge_rss_mb"] = memory["after"]["edge"]["rss"] / 1e6
    if "edge_bytes_per_stream" in result:
        shown["edge_kb_per_stream"] = result["edge_bytes_per_stream"] / 1000
    return shown


def _memory(running: Running) -> dict[str, dict[str, int]]:
    found = {group: measure.memory(roots) for group, roots in running.groups.items()}
    return {group: {"rss": one.rss, "pss": one.pss} for group, one in found.items()}
