"""The load client, a process of its own: `python -m bench.client SPEC-JSON`, JSON on stdout.

It prints a line {"mark": "begin"} before the measured part and {"mark": "end"} after it. After
"begin" it waits for a line on stdin, so that bench.scenarios can read the server's CPU time while
no request runs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import numpy as np
import uvloop

from bench.http_client import Caller, Server, Totals

# A prompt of about forty tokens.
PROMPT: Final = (
    "Explain in plain words how a narrow strip of land between two seas comes to be, what lives"
    " on it, who travels over it, and why people have so often wished to dig a canal through it."
)
# Connections opened at once: fewer than the 128 that a listener's accept queue often holds.
_CONNECT_AT_ONCE: Final = 64
# Errors after which no further request is sent; any error makes the run void.
_MANY_ERRORS: Final = 100
# Up to so many times, the raw times are part of the result, so that repeats can be pooled.
_KEPT_TIMES: Final = 2000


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The load.

    Attributes:
        mode: One of
            "streams": `connections` connections each request streams one after another: first
            `warm_rounds`, then, measured, at least `rounds` and all that begin within `seconds`.
            It prints the mark "held" once all have content. With a `rate`, it opens that many
            further streams a second, and `ttft_ms` counts only those.
            "rate": `rate` streams a second for `seconds`, each begun at its time even if earlier
            ones are still open.
            "plain": `connections` connections send unstreamed requests in turn for `seconds`.
            "embeddings": the same with embedding requests.
        url, model, key: The server's base URL without /v1, its model and an API key.
        tokens: Tokens that each response must have; 0 means any number.
        real: Whether the model is real. Requests then have `ignore_eos`, so that each response has
            `tokens` tokens, which are counted by its usage.
        warm_seconds: Duration of the unmeasured part, except for "streams".
        limit_seconds: Time after which a run that has not ended counts as an error.
        inputs, encoding: For "embeddings": texts in each request, and "base64" or "float".
        texts: For "embeddings", instead of `inputs`: each request has the next one of these texts.
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
    texts: tuple[str, ...] = ()


class Load:
    """One run of the client."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._server = Server(spec.url, spec.key, counts_usage=spec.real)
        self._streaming = 0
        self._idle: list[Caller] = []
        self._made: list[Caller] = []

    async def run(self) -> dict[str, Any]:
        """Runs the load of the specification and returns the result."""
        modes: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "streams": self._streams,
            "rate": self._rate,
            "plain": self._closed_loop,
            "embeddings": self._closed_loop,
        }
        # The measured part has its own limit; this one also ends a warm-up that hangs.
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

        async def stream(totals: Totals, seconds: float, rounds: int) -> None:
            ends = time.perf_counter() + seconds

            async def one(caller: Caller) -> None:
                done = 0
                while done < rounds or time.perf_counter() < ends:
                    await caller.send(request, totals, spec.tokens, self._stream_began)
                    done += 1
                    if sum(totals.errors.values()) >= _MANY_ERRORS:
                        return

            await asyncio.gather(*map(one, callers))

        added = Totals()

        async def work(totals: Totals) -> None:
            others = self._arrivals(added, spec.seconds) if spec.rate else asyncio.sleep(0)
            await asyncio.gather(stream(totals, spec.seconds, spec.rounds), others)
            totals.errors.update(added.errors)

        warm = Totals()
        await stream(warm, 0.0, spec.warm_rounds)
        self._streaming = 0
        result = await self._measured(work)
        if spec.rate:
            result["ttft_ms"] = _percentiles(added.first)
            for name in ("requests", "chunks", "tokens"):
                result[name] += getattr(added, name)
        return _with_warm_errors(result, warm)

    def _stream_began(self) -> None:
        self._streaming += 1
        if self._streaming == self._spec.connections:
            _mark("held")

    async def _rate(self) -> dict[str, Any]:
        spec = self._spec
        warm = Totals()
        await self._arrivals(warm, spec.warm_seconds)
        result = await self._measured(lambda totals: self._arrivals(totals, spec.seconds))
        return _with_warm_errors(result, warm)

    async def _arrivals(self, totals: Totals, seconds: float) -> None:
        """Sends `rate` requests a second, without waiting for earlier responses."""
        spec = self._spec
        request = self._generation(stream=True)

        async def one() -> None:
            caller = self._idle.pop() if self._idle else self._caller()
            await caller.send(request, totals, spec.tokens)
            self._idle.append(caller)

        # Evenly spaced, each with a random offset, so that requests do not keep step with a timer.
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
            lines = [f"a short line of text, number {number}" for number in range(spec.inputs)]
            requests = itertools.cycle(map(self._embedding, spec.texts or [lines]))
        else:
            requests = itertools.repeat(self._generation(stream=False))

        async def loop(totals: Totals, seconds: float) -> None:
            ends = time.perf_counter() + seconds

            async def one(caller: Caller) -> None:
                while time.perf_counter() < ends and sum(totals.errors.values()) < _MANY_ERRORS:
                    await caller.send(next(requests), totals)

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

    def _embedding(self, texts: str | list[str]) -> bytes:
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
    """Runs the load of the command line and prints the result."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    print(json.dumps({"result": uvloop.run(Load(spec).run())}), flush=True)


if __name__ == "__main__":
    main()
