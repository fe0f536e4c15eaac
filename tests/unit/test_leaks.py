"""The check after each test of the contract finds what a test left behind."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from edge.app import serving
from edge.config import EdgeConfig
from tests import leaks
from tests.conftest import TEXT, eventually, running_server


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "GRACE_SECONDS", 0.05)


async def left(check: leaks.Leaks) -> str:
    return "; ".join(await check.after_grace())


async def test_nothing_is_found_after_a_clean_test_and_looking_is_cheap() -> None:
    started = time.perf_counter()
    check = leaks.Leaks([])
    assert await left(check) == ""
    # It takes less than a millisecond; the rest is for a busy machine.
    assert time.perf_counter() - started < 0.025


async def test_task_that_still_runs_is_found() -> None:
    check = leaks.Leaks([])
    task = asyncio.create_task(asyncio.sleep(60))
    assert "a task runs: <coroutine object sleep" in await left(check)
    task.cancel()
    await asyncio.wait([task])
    assert await left(check) == ""


async def test_listening_socket_is_found_and_a_connected_one_is_not() -> None:
    check = leaks.Leaks([])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert "a socket listens" in await left(check)
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        assert await left(check) == ""


async def test_open_image_file_is_found(tmp_path: Path) -> None:
    check = leaks.Leaks([])
    with (tmp_path / f"{'0a' * 16}.png").open("wb"), (tmp_path / "other.png").open("wb"):
        assert (await left(check)).count("an image file is open") == 1
    assert await left(check) == ""


async def test_child_process_is_found() -> None:
    check = leaks.Leaks([])
    child = await asyncio.create_subprocess_exec("sleep", "60")
    assert f"a child process runs: psutil.Process(pid={child.pid}" in await left(check)
    child.kill()
    await child.wait()
    assert await left(check) == ""


async def test_session_permit_and_calls_are_found() -> None:
    with leaks.noted() as made:
        check = leaks.Leaks(made)
        async with running_server(TEXT) as server:
            upstreams = (f"127.0.0.1:{server.port}",)
            async with serving(EdgeConfig(port=0, upstreams=upstreams, settle_seconds=0)) as (
                edge,
                _,
            ):
                await eventually(edge.router.ready)
                assert "has an open session" in await left(check)
                edge.requests, edge.memory.used = 1, 7
                server.registry.memory.used = 5
                with server.registry.call():
                    async with server.registry.models[0].admission.permit(1):
                        found = await left(check)
                edge.requests, edge.memory.used = 0, 0
                server.registry.memory.used = 0
                assert "1 calls are open in the service" in found
                assert "scripted: <Admission running 1/" in found
                assert "the edge has 1 requests and 0 exchanges" in found
                assert "the edge holds <MemoryBudget 7/" in found
                assert "the service holds <MemoryBudget 5/" in found
        assert await left(check) == ""
