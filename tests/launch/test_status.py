"""`isthmus status` beside a real edge and service with scripted engines."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from aiohttp import ClientSession, web

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from keys import create_key
from launch.__main__ import main
from tests.certificates import Authority
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.contract import programs

# Its hanging requests do not make it stuck.
NARROW = ModelConfig(id="scripted", engine="scripted", max_running=2, slow_step_seconds=600.0)
HANG = {"model": "scripted", "prompt": json.dumps({"fail": "hang"}), "max_tokens": 5}


@pytest.fixture
def transport() -> str:
    return "session"


# `isthmus`, which a SIGINT interrupts also where pytest runs in the background of a shell.
_PROGRAM = """
import signal, sys
from launch.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


async def start(*options: str) -> asyncio.subprocess.Process:
    return await start_program("status", *options)


async def start_program(*arguments: str) -> asyncio.subprocess.Process:
    """Starts `isthmus`; its input is empty, and its errors are in its output."""
    environment = {**os.environ, "ISTHMUS_API_KEY": "", "COLUMNS": "120"}
    environment["PYTHONPATH"] = f"{programs.ROOT}:{programs.ROOT / 'generated'}"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _PROGRAM, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )


async def run(*options: str, key: str = "") -> tuple[int, str]:
    """Exit status and output of the command, in a thread: a process takes a second to start."""
    arguments = ["status", "--seconds", "0.5", *options]
    environment = {"ISTHMUS_API_KEY": key, "COLUMNS": "120"}
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), patch.dict(os.environ, environment):
        async with asyncio.timeout(60):
            status = await asyncio.to_thread(main, arguments)
    return status, output.getvalue()


async def seen(*options: str, key: str = "") -> dict[str, Any]:
    status, output = await run("--json", *options, key=key)
    assert status == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


def everything(stack: Stack) -> list[str]:
    return [
        *("--url", stack.url, "--grpc", f"127.0.0.1:{stack.server.port}"),
        *("--metrics", f"127.0.0.1:{stack.server.metrics_port}"),
    ]


async def test_shows_what_runs_and_waits(start_stack: StartStack) -> None:
    stack = await start_stack(NARROW, EMBEDDING, IMAGE, server={"metrics_listen": "127.0.0.1:0"})
    asking = [asyncio.create_task(stack.http.post("/v1/completions", json=HANG)) for _ in range(5)]
    try:
        await eventually(lambda: stack.server.registry.running_calls == 5)
        found = await seen(*everything(stack))
        status, text = await run(*everything(stack))
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    assert found["readiness"] == "ready"
    assert not found["errors"]
    [replica] = found["replicas"]
    upstream = f"127.0.0.1:{stack.server.port}"
    assert replica == {
        "upstream": upstream,
        "replica": f"ipv4:{upstream}",
        "serving": True,
        "resting": False,
        "calls": 5,
    }
    text_model, embedding, image = found["models"]
    assert text_model == {
        "model": "scripted",
        "kind": "text",
        "ready": True,
        "running": 2,
        "waiting": 3,
        "kv_cache_usage": pytest.approx(2 / 1024),
    }
    assert (embedding["kind"], image["kind"]) == ("embedding", "image")
    assert [each["running"] for each in (embedding, image)] == [0, 0]
    edge, service = found["processes"]
    if edge["program"] != "edge":
        edge, service = service, edge
    assert edge["requests_running"] == 6
    assert edge["queue_depth"] is None
    assert service["sessions"] == 1
    assert service["queue_depth"] == 3
    assert service["memory_limit_bytes"] == stack.server.registry.memory.limit
    assert status == 0
    [line] = [each for each in text.splitlines() if each.startswith("scripted ")]
    assert line.split() == ["scripted", "text", "ready", "2", "3", "0%"]
    [line] = [each for each in text.splitlines() if each.startswith(upstream)]
    assert line.split()[2:] == ["serving", "5"]


async def test_rates_are_those_of_the_time_between_two_looks(start_stack: StartStack) -> None:
    stack = await start_stack()
    body = {"model": "scripted", "prompt": "a b c", "max_tokens": 7}
    # Not counted: it ends before the first look.
    async with stack.http.post("/v1/completions", json=body) as response:
        await response.read()
    process = await start("--json", "--watch", "--seconds", "0.5", "--url", stack.url)
    assert process.stdout

    counted = dict.fromkeys(("requests", "errors", "input_tokens", "output_tokens"), 0.0)

    async def count() -> None:
        assert process.stdout
        rates = json.loads(await process.stdout.readline())["rates"]
        for name in counted:
            counted[name] += rates[name] * rates["seconds"]

    async with asyncio.timeout(60):
        await count()
        assert not any(counted.values())
        tokens = 0
        for _ in range(6):
            async with stack.http.post("/v1/completions", json=body) as response:
                tokens += (await response.json())["usage"]["prompt_tokens"]
        async with stack.http.post(
            "/v1/completions", json=body | {"prompt": '{"fail": "start"}'}
        ) as response:
            assert response.status == 500
        while counted["requests"] < 6.5:
            await count()
        await count()
    process.kill()
    await process.wait()
    wanted = {"requests": 7, "errors": 1, "input_tokens": tokens, "output_tokens": 6 * 7}
    assert counted == pytest.approx(wanted)


async def test_watch_looks_again_until_it_is_interrupted(start_stack: StartStack) -> None:
    stack = await start_stack()
    process = await start("--json", "--watch", "--seconds", "0.5", "--url", stack.url)
    assert process.stdout
    async with asyncio.timeout(60):
        looks = [json.loads(await process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert all(each["ready"] for each in looks)


async def test_two_edge_processes_are_two_rows_and_one_edge() -> None:
    async with programs.service(TEXT) as service:
        options = ("-m", "launch", "edge", "--processes", "2")
        async with programs.edge(service.port, start=options) as edge:
            url = f"http://127.0.0.1:{edge.port}"
            found: dict[str, Any] = {}
            async with asyncio.timeout(60):
                # The process that answers may have just started, and is not ready then.
                while not found.get("ready") or len(found["processes"]) < 2:
                    found = json.loads((await run("--json", "--url", url))[1])
    assert [each["process"] for each in found["processes"]] == ["edge-1", "edge-2"]
    [replica] = found["replicas"]
    assert replica["serving"]


async def test_edge_that_is_not_ready_is_1_and_says_why() -> None:
    port = programs.fixed_port()
    async with programs.service(TEXT) as service:
        async with programs.edge(service.port) as edge:
            await service.stop()
            url = f"http://127.0.0.1:{edge.port}"
            async with ClientSession() as http, asyncio.timeout(60):
                while await programs.status_of_ready(http, edge.port) != 503:
                    await asyncio.sleep(0.05)
            status, output = await run("--json", "--url", url)
            found = json.loads(output)
            assert (status, found["ready"]) == (1, False)
            assert found["readiness"] == "waiting for upstreams"
            assert list(found["problems"]) == [f"127.0.0.1:{service.port}"]
            assert [each["serving"] for each in found["replicas"]] == [False]
            status, output = await run("--url", url)
            assert status == 1
            assert "not serving" in output
    status, output = await run("--url", f"http://127.0.0.1:{port}")
    assert status == 1
    assert "isthmus up" in output
    assert "--url" in output


async def test_says_that_a_key_is_needed(start_stack: StartStack, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, api = create_key(path, "somebody")
    _, metrics = create_key(path, "prometheus", scope="metrics")
    stack = await start_stack(keys=path, key=api)
    for key in ("", "wrong"):
        status, output = await run("--url", stack.url, key=key)
        assert status == 1
        assert "ISTHMUS_API_KEY" in output
        assert "isthmus keys create NAME --scope metrics" in output
    assert (await seen("--url", stack.url, key=metrics))["replicas"]
    assert (await seen("--url", stack.url, "--key", api, key="wrong"))["replicas"]


async def test_service_that_wants_a_key_gets_it(start_stack: StartStack, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, api = create_key(path, "somebody")
    _, edge = create_key(path, "edge", scope="edge")
    stack = await start_stack(server_keys=path, upstream_token=edge)
    address = f"127.0.0.1:{stack.server.port}"
    status, output = await run("--url", stack.url, "--grpc", address)
    assert status == 1
    assert f"{address} wants a valid key of scope api" in output
    found = await seen("--url", stack.url, "--grpc", address, key=api)
    assert [each["kind"] for each in found["models"]] == ["text", "embedding"]


async def test_says_where_the_metrics_are(start_stack: StartStack) -> None:
    port = programs.fixed_port()
    stack = await start_stack(metrics_listen=f"127.0.0.1:{port}")
    status, output = await run("--url", stack.url)
    assert status == 1
    assert "--metrics HOST:PORT" in output
    found = await seen("--url", stack.url, "--metrics", f"127.0.0.1:{port}")
    assert [each["program"] for each in found["processes"]] == ["edge"]
    assert found["replicas"]


async def test_what_is_no_isthmus_is_named(start_stack: StartStack) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    other = grpc.aio.server()
    other_port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"127.0.0.1:{runner.addresses[0][1]}"
        options = ("--url", f"http://{address}", "--grpc", f"127.0.0.1:{other_port}")
        status, output = await run(*options)
        assert status == 1
        assert f"http://{address} is no edge of Isthmus." in output
        assert f"127.0.0.1:{other_port} is no service of Isthmus." in output
        stack = await start_stack()
        status, output = await run("--url", stack.url, "--metrics", address)
        assert status == 1
        assert f"http://{address}/metrics has no metrics." in output
    finally:
        await runner.cleanup()
        await other.stop(0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--url", "127.0.0.1:8000"], "http://127.0.0.1:8000"),
        (["--metrics", "9464"], "--metrics"),
        (["--grpc", "localhost"], "--grpc"),
        (["--ca", "missing.pem"], "missing.pem"),
        (["--seconds", "0"], "0.5"),
    ],
)
def test_wrong_options_are_2_and_named(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["status", *options])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert named in capsys.readouterr().err


async def test_certificates_of_ones_own_need_their_ca(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("127.0.0.1", "localhost")
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(TEXT,), **files))
    await server.start()
    try:
        await server.load()
        address = f"127.0.0.1:{server.port}"
        config = EdgeConfig(port=0, upstreams=(address,), upstream_ca=authority.path, **files)
        async with serving(config) as (edge, port):
            await eventually(edge.router.ready)
            options = ("--url", f"https://127.0.0.1:{port}", "--grpc", address)
            status, output = await run(*options)
            assert status == 1
            assert "has a certificate that is not trusted. Pass --ca FILE." in output
            assert f"{address} does not answer." in output
            found = await seen(*options, "--ca", str(authority.path))
    finally:
        await server.close()
    assert [each["kind"] for each in found["models"]] == ["text"]
    assert found["replicas"]
