"""What is done to every subject, and what a run of it yields."""

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
# The timers of event loops, ours and others', count whole milliseconds.
_TIMER_SECONDS: Final = 0.001
_STREAMS: Final = 64
# For answers that began in time to end in.
_CLIENT_SPARE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Scenario:
    """One load.

    Attributes:
        name: On the command line and in the results.
        source: What stands behind the gateway.
        load: Members of the client's specification.
        half_of: The source's pace is half of the tokens per second that the subject made in this
            other scenario of the same pass.
        only_ours: Peers do not take part: they cannot, or there is nothing to compare.
    """

    name: str
    source: Source
    load: Mapping[str, Any] = field(default_factory=dict)
    half_of: str = ""
    only_ours: bool = False

    @property
    def holds(self) -> bool:
        """Whether memory is looked at while all streams are open."""
        return self.load.get("warm_rounds") == 0


def all_scenarios(*, quick: bool) -> tuple[Scenario, ...]:
    """Everything, or the same in a few seconds each: shorter, fewer streams held.

    The sources of "saturated" and "overload" go as fast as they are read. In "overload" each of
    their steps brings every stream five tokens: in a CPU second the scripted engine then makes
    more than five times as many tokens as an edge can write chunks, so that only joining keeps up;
    25 more streams a second come on top. "half-load" is paced at half of what the same subject
    reached when saturated. "growth-N" is N streams at 50 tokens a second each, "pace-N" 64 streams
    at N tokens a second.
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
    """The source at half of a rate that `_STREAMS` streams reached."""
    step = 2 * _STREAMS / tokens_per_second
    return Source(source.tokens, max(round(step / _TIMER_SECONDS), 1) * _TIMER_SECONDS)


def run(scenario: Scenario, running: Running) -> dict[str, Any]:
    """Puts the load on a started subject and returns what was seen.

    CPU seconds are those between the client's marks, when no request is under way.
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
                _let_go(client)
            elif mark == "held" and scenario.holds:
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


def _let_go(client: subprocess.Popen[str]) -> None:
    if client.stdin is not None:
        client.stdin.write("go\n")
        client.stdin.flush()


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """What the tables show of a run; CPU in microseconds, times in milliseconds."""
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
