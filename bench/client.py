"""The load client, a process of its own: `python -m bench.client SPEC-JSON`, JSON on stdout.

Before and after the measured part it prints a line {"mark": ...}; after "begin" it waits for a
line on stdin, so that whoever measures the server can look at it while nothing happens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import numpy as np
import uvloop

from bench.http_client import Connection, Server, Totals

# About forty tokens of a usual vocabulary.
PROMPT: Final = (
    "Explain in plain words how a narrow strip of land between two seas comes to be, what lives"
    " on it, who travels over it, and why people have so often wished to dig a canal through it."
)
# So many connections are made at once: a listener's queue is often 128 long.
_CONNECT_AT_ONCE: Final = 64
# A run with so many is void anyway.
_MANY_ERRORS: Final = 100
# As many raw times are kept, so that those of several repeats can be pooled.
_KEPT_TIMES: Final = 2000


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do.

    Attributes:
        mode: "streams": `connections` streams at once, each one `warm_rounds` answers and then,
            one after another, as many as begin within `seconds`, but at least `rounds`; "held" is
            marked once all have begun to speak. With a `rate`, that many more streams a second
            come beside them, and `ttft_ms` is of those alone.
            "rate": `rate` streams a second for `seconds`, each sent at its time whatever became
            of those before. "plain": `connections` ask one after another for `seconds`.
            "embeddings": the same with inputs to embed.
        url, model, key: Of the server.
        tokens: That every answer must have; 0 is not checked.
        real: A real model answers: it is told to go on to `tokens`, whatever it has to say, and
            tokens are those of the usage that it sends, for its pieces are no words.
        warm_seconds: Of "rate", "plain" and "embeddings", before the measured part.
        limit_seconds: What has not ended by then is an error.
        inputs, encoding: Of "embeddings": texts a request, and "base64" or "float".
    """

    mode: str
    url: str
    model: str
    key: str = ""
    tokens: int = 0
    real: bool = False
    connections: int = 1
    warm_rounds: int = 1
    rounds: int = 1
    rate: float = 0.0
    seconds: float = 5.0
    warm_seconds: float = 1.0
    limit_seconds: float = 60.0
    inputs: int = 256
    encoding: str = "base64"


class Caller:
    """A connection that is made again when the server has closed it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connection: Connection | None = None

    async def ask(
        self,
        request: bytes,
        totals: Totals,
        tokens: int = 0,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        """Sends a request and waits for its end; faults are counted, never raised."""
        try:
            if self.connection is None or not self.connection.usable:
                self.connection = await self._server.connect()
        except OSError as error:
            totals.errors[f"connect: {type(error).__name__}"] += 1
            return
        connection = self.connection
        connection.on_first = on_first
        fault = await connection.send(request, totals)
        if tokens and not fault and connection.tokens != tokens:
            totals.errors[f"{connection.tokens} tokens for {tokens}"] += 1

    def close(self) -> None:
        """Gives the connection up."""
        if self.connection is not None:
            self.connection.close()


class Load:
    """One run of the client."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._server = Server(spec.url, spec.key, counts_usage=spec.real)
        self._speaking = 0
        self._idle: list[Caller] = []
        self._made: list[Caller] = []

    async def run(self) -> dict[str, Any]:
        """Does what the specification says."""
        modes: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "streams": self._streams,
            "rate": self._rate,
            "plain": self._closed_loop,
            "embeddings": self._closed_loop,
        }
        # The measured part has a bound of its own, which counts; this one is for what precedes it.
        try:
            async with asyncio.timeout(2 * self._spec.limit_seconds):
                return await modes[self._spec.mode]()
        finally:
            for caller in self._made:
                caller.close()

    async def _measured(self, work: Callable[[Totals], Awaitable[object]]) -> dict[str, Any]:
        _mark("begin")
        sys.stdin.readline()
        totals, cpu, began = Totals(), time.process_time(), time.perf_counter()
        try:
            async with asyncio.timeout(self._spec.limit_seconds):
                await work(totals)
        except TimeoutError:
            totals.errors["not ended in time"] += 1
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        _mark("end")
        return _summary(totals, seconds, cpu)

    async def _streams(self) -> dict[str, Any]:
        spec = self._spec
        callers = await self._callers()
        request = self._generation(stream=True)

        async def speak(totals: Totals, seconds: float, rounds: int) -> None:
            ends = time.perf_counter() + seconds

            async def one(caller: Caller) -> None:
                done = 0
                while done < rounds or time.perf_counter() < ends:
                    await caller.ask(request, totals, spec.tokens, self._began_to_speak)
                    done += 1
                    if sum(totals.errors.values()) >= _MANY_ERRORS:
                        return

            await asyncio.gather(*map(one, callers))

        probes = Totals()

        async def work(totals: Totals) -> None:
            others = self._arrivals(probes, spec.seconds) if spec.rate else asyncio.sleep(0)
            await asyncio.gather(speak(totals, spec.seconds, spec.rounds), others)
            totals.errors.update(probes.errors)

        warm = Totals()
        await speak(warm, 0.0, spec.warm_rounds)
        self._speaking = 0
        result = await self._measured(work)
        if spec.rate:
            result["ttft_ms"] = _percentiles(probes.first)
            for name in ("requests", "chunks", "tokens"):
                result[name] += getattr(probes, name)
        return _with_warm_errors(result, warm)

    def _began_to_speak(self) -> None:
        self._speaking += 1
        if self._speaking == self._spec.connections:
            _mark("held")

    async def _rate(self) -> dict[str, Any]:
        spec = self._spec
        warm = Totals()
        await self._arrivals(warm, spec.warm_seconds)
        result = await self._measured(lambda totals: self._arrivals(totals, spec.seconds))
        return _with_warm_errors(result, warm)

    async def _arrivals(self, totals: Totals, seconds: float) -> None:
        """Sends requests at their times, whatever becomes of those before."""
        spec = self._spec
        request = self._generation(stream=True)

        async def one() -> None:
            caller = self._idle.pop() if self._idle else self._caller()
            await caller.ask(request, totals, spec.tokens)
            self._idle.append(caller)

        # Evenly, but not in step with anything that ticks.
        offsets = np.random.default_rng(0).uniform(0, 0.5, int(spec.rate * seconds))
        began = time.perf_counter()
        tasks = []
        for moment in ((np.arange(len(offsets)) + offsets) / spec.rate).tolist():
            await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(one()))
        await asyncio.gather(*tasks)

    async def _closed_loop(self) -> dict[str, Any]:
        spec = self._spec
        callers = await self._callers()
        if spec.mode == "embeddings":
            request = self._embeddings()
        else:
            request = self._generation(stream=False)

        async def loop(totals: Totals, seconds: float) -> None:
            ends = time.perf_counter() + seconds

            async def one(caller: Caller) -> None:
                while time.perf_counter() < ends and sum(totals.errors.values()) < _MANY_ERRORS:
                    await caller.ask(request, totals)

            await asyncio.gather(*map(one, callers))

        warm = Totals()
        await loop(warm, spec.warm_seconds)
        result = await self._measured(lambda totals: loop(totals, spec.seconds))
        return _with_warm_errors(result, warm)

    async def _callers(self) -> list[Caller]:
        callers = [self._caller() for _ in range(self._spec.connections)]
        for start in range(0, len(callers), _CONNECT_AT_ONCE):
            batch = callers[start : start + _CONNECT_AT_ONCE]
            made = await asyncio.gather(*(self._server.connect() for _ in batch))
            for caller, connection in zip(batch, made, strict=True):
                caller.connection = connection
        return callers

    def _caller(self) -> Caller:
        caller = Caller(self._server)
        self._made.append(caller)
        return caller

    def _generation(self, *, stream: bool) -> bytes:
        body: dict[str, Any] = {
            "model": self._spec.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": stream,
        }
        if self._spec.tokens:
            body["max_tokens"] = self._spec.tokens
        if self._spec.real:
            body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        return self._server.post("/v1/chat/completions", json.dumps(body).encode())

    def _embeddings(self) -> bytes:
        texts = [f"a short line of text, number {number}" for number in range(self._spec.inputs)]
        body = {
            "model": self._spec.model,
            "input": texts,
            "encoding_format": self._spec.encoding,
        }
        return self._server.post("/v1/embeddings", json.dumps(body).encode())


def _mark(name: str) -> None:
    print(json.dumps({"mark": name}), flush=True)


def _summary(totals: Totals, seconds: float, cpu: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "requests": totals.requests,
        "chunks": totals.chunks,
        "tokens": totals.tokens,
        "received_bytes": totals.received_bytes,
        "errors": dict(totals.errors),
        "client_cpu_seconds": cpu,
        "ttft_ms": _percentiles(totals.first),
        "gap_ms": _percentiles(totals.gaps),
        "latency_ms": _percentiles(totals.whole),
    }


def _with_warm_errors(result: dict[str, Any], warm: Totals) -> dict[str, Any]:
    for fault, count in warm.errors.items():
        result["errors"][f"warm-up: {fault}"] = count
    return result


def _percentiles(seconds: array[float]) -> dict[str, Any]:
    if not seconds:
        return {"n": 0}
    milliseconds = np.frombuffer(seconds) * 1000
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).tolist()
    return {
        "n": len(seconds),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": float(milliseconds.max()),
        "raw": milliseconds.round(3).tolist() if len(seconds) <= _KEPT_TIMES else [],
    }


def main() -> None:
    """Runs the load and prints what was seen."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    print(json.dumps({"result": uvloop.run(Load(spec).run())}), flush=True)


if __name__ == "__main__":
    main()
