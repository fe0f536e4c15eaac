"""More and fewer replicas behind one name, under load: no request fails, and each is counted once.

What a headless Service does: a pod's address is in the name once it is ready, and leaves the name
before the pod gets SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from edge.upstream.replica import Replica
from tests.conftest import EMBEDDING, eventually
from tests.contract import programs
from tests.contract.load import Stream, measured, words
from tests.contract.programs import Program, fixed_port
from tests.contract.test_bars import scripted
from tests.contract.test_metrics import DURATION, Scrape, scrape_at

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
TOKENS = 20
# Enough that some of them run on each replica.
LONG_STREAMS = 20


class Name:
    """The addresses that "service" resolves to; every other name is resolved as always."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: list[str] = []
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
            if host != "service":
                return await real(host, port, **options)
            if not self.hosts:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
            return [item for each in self.hosts for item in await real(each, port, **options)]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


class Pods:
    """Services on the same port of several addresses."""

    def __init__(self, ends: AsyncExitStack) -> None:
        self._ends = ends
        self.port = fixed_port()
        self.running: dict[str, tuple[Program, int]] = {}

    async def start(self, host: str) -> None:
        metrics = fixed_port()
        options = ("--metrics-listen", f"127.0.0.1:{metrics}")
        models = (scripted(0.01), EMBEDDING)
        pod = programs.service(*models, host=host, port=self.port, options=options)
        self.running[host] = (await self._ends.enter_async_context(pod), metrics)

    async def served(self, host: str) -> int:
        """Calls that have ended there, with success; others fail the test."""
        return _calls(await scrape_at(self.running[host][1]))

    async def stop(self, host: str) -> None:
        program, _ = self.running[host]
        program.send(signal.SIGTERM)
        assert await program.ended() == 0


def _calls(seen: Scrape) -> int:
    ended = seen.sum(f"{DURATION}_count")
    assert seen.sum(f"{DURATION}_count", error_type="") == ended, seen.text
    return int(ended)


class Load:
    """Clients of each kind, one request after the other until `stop`; each response is checked."""

    def __init__(self, http: ClientSession) -> None:
        self._http = http
        self._sessions = itertools.count()
        self._kinds = [self._plain, self._stream, self._embedding] * 4
        self._counts = [0] * len(self._kinds)
        self.stop = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._client(n, kind) for n, kind in enumerate(self._kinds)))

    async def more(self) -> None:
        """Waits until every client has ended its request, and another one that it began since."""
        goals = [count + 2 for count in self._counts]
        await eventually(
            lambda: self.failed or all(c >= g for c, g in zip(self._counts, goals, strict=True))
        )
        assert self.failed == []

    async def _client(self, number: int, kind: Any) -> None:
        while not self.stop.is_set():
            try:
                problem = await kind()
            except Exception as error:
                problem = repr(error)
            self.done[kind.__name__] += 1
            self._counts[number] += 1
            if problem:
                self.failed.append(f"{kind.__name__}: {problem}")

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        # Each is a session of its own, so they are spread.
        session = {"x-session-id": str(next(self._sessions))}
        async with self._http.post(path, json=body, headers=session) as response:
            return response.status, await response.text()

    async def _text(self, **body: Any) -> tuple[int, str]:
        prompt = json.dumps({"tokens": TOKENS})
        body |= {"model": "scripted", "prompt": prompt, "max_tokens": TOKENS}
        return await self._ask("/v1/completions", body)

    async def _plain(self) -> str:
        status, text = await self._text()
        good = status == 200 and json.loads(text)["choices"][0]["text"] == words(TOKENS)
        return "" if good else f"{status} {text}"

    async def _stream(self) -> str:
        status, text = await self._text(stream=True)
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        if status != 200 or not events or events[-1] != "[DONE]":
            return f"{status} {text}"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        return "" if "".join(c["text"] for c in choices) == words(TOKENS) else text

    async def _embedding(self) -> str:
        body = {"model": EMBEDDING.id, "input": [json.dumps({"seconds": 0.05}), "x"]}
        status, text = await self._ask("/v1/embeddings", body)
        return "" if status == 200 and len(json.loads(text)["data"]) == 2 else f"{status} {text}"


@asynccontextmanager
async def loaded(port: int) -> AsyncIterator[tuple[Load, ClientSession]]:
    """An edge's clients, which end with the context."""
    async with ClientSession(f"http://127.0.0.1:{port}") as http:
        load = Load(http)
        running = asyncio.create_task(load.run())
        try:
            yield load, http
        finally:
            load.stop.set()
            await running


def replicas(edge: Edge) -> dict[str, Replica]:
    """By host."""
    (upstream,) = edge.router.upstreams
    return {address.split(":")[1]: replica for address, replica in upstream.replicas.items()}


def serving_hosts(edge: Edge) -> set[str]:
    return {host for host, replica in replicas(edge).items() if replica.serving}


async def test_scaling_up_and_down_fails_no_request(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    name = Name(monkeypatch)
    async with AsyncExitStack() as ends:
        pods = Pods(ends)
        await pods.start(HOSTS[0])
        name.hosts = [HOSTS[0]]
        config = EdgeConfig(
            port=0,
            upstreams=(f"service:{pods.port}",),
            allow_plaintext=True,
            transport=transport,
            resolve_seconds=0.2,
            settle_seconds=0.0,
        )
        edge, port = await ends.enter_async_context(serving(config))
        await eventually(edge.router.ready)
        load, http = await ends.enter_async_context(loaded(port))
        await load.more()

        for host in HOSTS[1:]:
            await pods.start(host)
        name.hosts = list(HOSTS)
        await eventually(lambda: serving_hosts(edge) == set(HOSTS))
        await load.more()
        before = [await pods.served(host) for host in HOSTS]
        await load.more()
        after = [await pods.served(host) for host in HOSTS]
        assert all(b < a for b, a in zip(before, after, strict=True)), (before, after)

        served = {}
        for host in HOSTS[:0:-1]:
            served[host] = await scale_down(edge, name, pods, load, http, host)
            await load.more()
        assert replicas(edge).keys() == {HOSTS[0]}

        load.stop.set()
        await eventually(lambda: not edge.requests)
        served[HOSTS[0]] = await pods.served(HOSTS[0])
        long = 2 * LONG_STREAMS
        assert load.failed == []
        assert sum(served.values()) == load.done.total() + long
        assert _calls(await scrape_at(port)) == load.done.total() + long
        measured(f"{load.done.total()} requests, 0 failed, by address: {served}")
        assert min(load.done.values()) >= 20


async def scale_down(
    edge: Edge, name: Name, pods: Pods, load: Load, http: ClientSession, host: str
) -> int:
    """Takes the address out of the name, and then stops its process while streams run there.

    Returns:
        All calls that it has served, those streams included.
    """
    replica = replicas(edge)[host]
    streams = [asyncio.create_task(long_stream(http, 300 + n)) for n in range(LONG_STREAMS)]
    await load.more()
    name.hosts.remove(host)
    await eventually(lambda: replica.leaving)
    # Then all shorter calls there have ended.
    await load.more()
    running = replica.outstanding
    ended = await pods.served(host)
    assert 0 < running == replica.outstanding
    await pods.stop(host)
    await asyncio.gather(*streams)
    await eventually(lambda: host not in replicas(edge))
    return ended + running


async def long_stream(http: ClientSession, tokens: int) -> None:
    stream = await Stream().read(http, {"tokens": tokens})
    assert (stream.ended, stream.text) == ("done", words(tokens))
