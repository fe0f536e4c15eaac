"""The bars of faults that end or stop a process; docs/reliability.md has the table of all bars."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import psutil
import pytest
from aiohttp import ClientSession

from edge.upstream import channels
from inference.config import ModelConfig
from tests.conftest import EMBEDDING, TEXT, eventually
from tests.contract import programs
from tests.contract.load import (
    Stream,
    check_seconds,
    measured,
    percentile_of_gaps,
    streams,
    until,
    words,
)
from tests.contract.programs import Program, status_of_ready
from tests.contract.test_bars import scripted
from tests.contract.test_health import NOT_SERVING, SERVING, Watcher
from tests.contract.test_recovery import Client, edge_of

MIB = 1024 * 1024
LONG = {"tokens": 4000}


@pytest.fixture
def transport() -> str:
    """The bars are those of the default transport."""
    return "session"


@asynccontextmanager
async def pair(*models: ModelConfig, **edge: Any) -> AsyncIterator[tuple[list[Program], Client]]:
    """Two services in processes of their own behind an edge in this one."""
    async with AsyncExitStack() as ends:
        services = [await ends.enter_async_context(programs.service(*models)) for _ in range(2)]
        client = await ends.enter_async_context(edge_of(*(s.port for s in services), **edge))
        await eventually(client.edge.router.ready, 20)
        yield services, client


def start(http: ClientSession, cue: dict[str, Any]) -> tuple[Stream, asyncio.Task[Stream]]:
    stream = Stream()
    return stream, asyncio.create_task(stream.read(http, cue))


async def start_on_each(client: Client, cue: dict[str, Any], count: int) -> list[list[Any]]:
    """Starts streams and returns them by replica: each goes to the least busy one."""
    found: list[list[Any]] = [[], []]
    # Their common prefix would keep them together.
    with patch("edge.upstream.affinity.key_of", return_value=b""):
        for _ in range(count):
            before = [replica.outstanding for replica in client.replicas]
            stream, task = start(client.http, cue)
            await eventually(lambda s=stream: s.arrivals)
            after = [replica.outstanding for replica in client.replicas]
            found[0 if after[0] > before[0] else 1].append((stream, task))
    return found


async def test_killed_service_is_an_error_event_at_once_and_other_streams_go_on() -> None:
    async with pair(scripted(0.01)) as (services, client):
        lost, kept = await start_on_each(client, {"tokens": 150}, 10)
        assert len(lost) == len(kept) == 5
        services[0].send(signal.SIGKILL)
        killed = time.monotonic()
        ends = await asyncio.gather(*(task for _, task in lost))
        measured(f"error event after {1000 * max(s.ended_at - killed for s in ends):.0f} ms")
        assert {stream.ended for stream in ends} == {"error"}
        check_seconds(max(stream.ended_at - killed for stream in ends), 0.1)
        for stream in await asyncio.gather(*(task for _, task in kept)):
            assert (stream.ended, stream.text) == ("done", words(150))


async def test_stopped_service_is_found_by_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 1000}
    changed["grpc.http2.ping_timeout_ms"] = 1000
    options = tuple((name, changed.get(name, value)) for name, value in channels._OPTIONS)
    monkeypatch.setattr(channels, "_OPTIONS", options)
    async with programs.service(scripted(0.01)) as service, edge_of(service.port) as client:
        await eventually(client.edge.router.ready, 20)
        stream, task = start(client.http, LONG)
        await eventually(lambda: stream.arrivals)
        service.send(signal.SIGSTOP)
        stopped = time.monotonic()
        await task
        measured(f"error event after {stream.ended_at - stopped:.1f} s, for 1 s + 1 s")
        assert stream.ended == "error"
        check_seconds(stream.ended_at - stopped, 1, 1 + 1)
        await eventually(lambda: not client.edge.router.ready(), 5)
        service.send(signal.SIGCONT)
        await eventually(client.edge.router.ready, 5)


async def test_kill_under_load_fails_only_requests_that_were_on_the_service() -> None:
    async with pair(scripted(0.01)) as (services, client):
        stop = asyncio.Event()
        plain: list[tuple[float, int]] = []

        async def stream() -> Stream:
            return await Stream().read(client.http, {"tokens": 20})

        async def ask() -> None:
            started = time.monotonic()
            plain.append((started, (await client.ask("chat"))[0]))

        load = asyncio.create_task(until(stop, 20, stream))
        plain_load = asyncio.create_task(until(stop, 10, ask))
        await asyncio.sleep(0.6)
        on_it = client.replicas[0].outstanding
        services[0].send(signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.sleep(1)
        stop.set()
        found = await load
        await plain_load
        failed = [stream.started for stream in found if stream.ended != "done"]
        failed += [started for started, status in plain if status != 200]
        later = [s.started for s in found] + [started for started, _ in plain]
        later = [started for started in later if started > killed]
        measured(
            f"{len(failed)} of {on_it} on it failed, of {len(later)} later ones "
            f"{sum(s > killed for s in failed)}"
        )
        assert len(failed) <= on_it
        assert all(started < killed for started in failed)
        assert len(later) > 30
        assert {s.text for s in found if s.ended == "done"} == {words(20)}


async def test_stopping_service_finishes_20_streams_while_new_requests_go_elsewhere() -> None:
    async with pair(scripted(0.02)) as (services, client):
        running = await start_on_each(client, {"tokens": 100}, 40)
        assert len(running[0]) == 20
        address = f"127.0.0.1:{services[0].port}"
        async with grpc.aio.insecure_channel(address) as channel:
            watcher = Watcher(channel)
            await eventually(lambda: watcher.told == [SERVING])
            services[0].send(signal.SIGTERM)
            signalled = time.monotonic()
            stop = asyncio.Event()
            load = asyncio.create_task(until(stop, 4, lambda: client.ask("chat")))
            await eventually(lambda: watcher.told == [SERVING, NOT_SERVING])
            assert not running[0][0][1].done(), "the status comes before the end of the streams"
            ends = await asyncio.gather(*(task for _, task in running[0]))
            status = await services[0].ended()
            measured(f"exit status {status} after {time.monotonic() - signalled:.1f} s")
            await watcher.leave()
        stop.set()
        assert {answer[0] for answer in await load} == {200}
        assert {(s.ended, s.text) for s in ends} == {("done", words(100))}
        assert status == 0
        assert time.monotonic() - signalled <= 5
        await asyncio.gather(*(task for _, task in running[1]))


async def test_stopping_edge_is_unready_at_once_and_finishes_20_streams() -> None:
    options = ("--settle-seconds", "0.5")
    async with programs.service(scripted(0.02)) as service:
        async with programs.edge(service.port, options=options) as edge, client_of(edge) as http:
            running = [start(http, {"tokens": 100}) for _ in range(20)]
            await eventually(lambda: all(stream.arrivals for stream, _ in running))
            edge.send(signal.SIGTERM)
            signalled = time.monotonic()
            statuses = []
            while (status := await status_of_ready(http, edge.port)) != 0:
                statuses.append((status, time.monotonic() - signalled))
                await asyncio.sleep(0.02)
            ends = await asyncio.gather(*(task for _, task in running))
            assert await edge.ended() == 0
            measured(f"unready after {statuses[0][1]:.2f} s, listening for {statuses[-1][1]:.2f} s")
    assert {(stream.ended, stream.text) for stream in ends} == {("done", words(100))}
    assert statuses[-1][0] == 503
    check_seconds(max((at for status, at in statuses if status != 503), default=0), 0.02)
    assert statuses[-1][1] >= 0.3, "the port stays open for the settle time"


async def test_edge_ends_streams_at_the_end_of_its_grace_and_a_second_signal_ends_it_at_once() -> (
    None
):
    options = ("--settle-seconds", "0", "--drain-seconds", "0.5")
    async with programs.service(scripted(0.01)) as service, AsyncExitStack() as ends:
        edges = [
            await ends.enter_async_context(programs.edge(service.port, options=options)),
            await ends.enter_async_context(programs.edge(service.port)),
        ]
        clients = [await ends.enter_async_context(client_of(edge)) for edge in edges]
        running = [start(http, LONG) for http in clients]
        await eventually(lambda: all(stream.arrivals for stream, _ in running))
        for edge in edges:
            edge.send(signal.SIGTERM)
        signalled = time.monotonic()
        await asyncio.sleep(0.2)
        edges[1].send(signal.SIGTERM)
        second = time.monotonic()
        assert await edges[1].ended() == 130
        measured(f"second signal: {time.monotonic() - second:.2f} s")
        check_seconds(time.monotonic() - second, 0.5)
        assert await edges[0].ended() == 0
        measured(f"exit {time.monotonic() - signalled:.2f} s after the signal, grace 0.5 s")
        check_seconds(time.monotonic() - signalled, 1, 0.5)
        await asyncio.gather(*(task for _, task in running))
        assert running[0][0].ended == "error"
        assert running[1][0].ended in ("cut", "error")


def client_of(edge: Program) -> ClientSession:
    return ClientSession(f"http://127.0.0.1:{edge.port}")


async def test_second_out_of_memory_within_a_minute_is_a_failed_exit() -> None:
    async with programs.service(EMBEDDING, TEXT) as service, edge_of(service.port) as client:
        await eventually(client.edge.router.ready, 20)
        bad = json.dumps({"fail": "memory"})
        assert (await client.ask("embedding", input=bad))[0] == 503
        assert (await client.ask("embedding"))[0] == 200
        assert service.process.poll() is None
        assert (await client.ask("embedding", input=bad))[0] == 503
        assert await service.ended() == 1


def connected(process: psutil.Process) -> int:
    return sum(end.status == psutil.CONN_ESTABLISHED for end in process.net_connections("tcp"))


# A megabyte for each client, four times what may wait for it in the edge.
WIDE = ModelConfig(
    id="wide",
    engine="scripted",
    engine_args={"step_seconds": 0.1, "text": " ".join(["w" * 15_000] * 70)},
)


async def test_50_clients_that_read_nothing_leave_others_even(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text("[edge]\nwrite_stall_seconds = 1.0\n", encoding="utf-8")
    async with AsyncExitStack() as ends:
        service = await ends.enter_async_context(programs.service(WIDE, scripted(0.02)))
        edge = await ends.enter_async_context(
            programs.edge(service.port, options=("--config", str(config)))
        )
        http = await ends.enter_async_context(client_of(edge))
        await streams(http, 20, {"tokens": 5})
        process = psutil.Process(edge.process.pid)
        before, started = process.memory_info().rss, time.monotonic()
        deaf = [ends.enter_context(socket.socket()) for _ in range(50)]
        for client in deaf:
            await ask_and_read_nothing(client, edge.port)
        even, largest = asyncio.create_task(streams(http, 20, {"tokens": 60})), before
        await eventually(lambda: connected(process) > 60)
        while connected(process) > 30:  # 20 of the others, and a few to the service.
            largest = max(largest, process.memory_info().rss)
            check_seconds(time.monotonic() - started, 2, 1)
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - started
        gap, grown = percentile_of_gaps(await even), (largest - before) / MIB
        measured(f"dropped by {seconds:.1f} s, grown {grown:.1f} MiB, p99 gap {1000 * gap:.0f} ms")
        check_seconds(gap, 0.075)
        assert grown <= 40


async def ask_and_read_nothing(client: socket.socket, port: int) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    body = {"model": "wide", "prompt": "x", "max_tokens": 4000, "stream": True}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(
        client, head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data
    )
