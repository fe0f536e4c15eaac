"""deploy/ outside Kubernetes: systemd units, proxies, Dockerfiles, by the tools that read them."""

from __future__ import annotations

import asyncio
import configparser
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import crossplane
import pytest
import yaml
from aiohttp import ClientSession, web

import edge.__main__
import edge.app
import inference.__main__
from edge.config import EdgeConfig, load_edge_config
from edge.http_protocol import KEEP_ALIVE_SECONDS
from inference import server

ROOT = Path(__file__).parents[2]
KIT = ROOT / "deploy"
UNITS = {"edge": "isthmus-edge.service", "inference": "isthmus-inference@.service"}
NGINX = KIT / "nginx" / "isthmus.conf"
ENVOY: dict[str, Any] = yaml.safe_load((KIT / "envoy" / "envoy.yaml").read_text())
# Envoy's API as Python classes. They need an environment of their own: the package has files of
# googleapis-common-protos as well.
XDS = "xds-protos==1.85.0"
READ_ENVOY = """
import sys, yaml
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format
json_format.ParseDict(yaml.safe_load(sys.stdin), bootstrap_pb2.Bootstrap())
"""
# Seconds for what a program does at its end beside what its settings bound.
CLOSING_SECONDS = 5


def test_the_readme_names_every_file_of_the_kit() -> None:
    text = (KIT / "README.md").read_text()
    for path in KIT.rglob("*.*"):
        if path.parent.parent.name in ("kubernetes", "components", "example"):
            path = path.parent
        name = str(path.relative_to(KIT))
        assert name == "README.md" or f"`{name}`" in text, name


@pytest.mark.parametrize("name", UNITS)
def test_hadolint_finds_nothing_in_the_dockerfiles(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, ROOT / "docker" / f"{name}.Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


# systemd


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(KIT / "systemd" / UNITS[name])
    return parser["Service"]


def command(name: str) -> list[str]:
    line = unit(name)["ExecStart"].replace("%i", "some-model")
    return shlex.split(line.replace("${PORT}", "50051").replace("${METRICS_PORT}", "9465"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit_and_calls_it_confined(name: str, tmp_path: Path) -> None:
    program = tmp_path / "isthmus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / UNITS[name]
    text = (KIT / "systemd" / UNITS[name]).read_text()
    path.write_text(re.sub(r"(?<=ExecStart=)\S+", str(program), text))
    for arguments in (("verify", "--man=no"), ("security", "--offline=yes", "--threshold=40")):
        done = subprocess.run(
            ["systemd-analyze", *arguments, path], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # An unknown or misspelt setting is a warning.
        assert UNITS[name] not in done.stderr


def test_units_start_the_programs_with_settings_that_they_take() -> None:
    program, subcommand, *arguments = command("edge")
    assert (Path(program).name, subcommand) == ("isthmus", "edge")
    assert edge.__main__._parser().parse_args(arguments)
    config = load_edge_config(KIT / "systemd" / "edge.toml", {})
    assert config.files_dir
    assert config.files_dir.parent == Path("/var/lib") / unit("edge")["StateDirectory"]
    assert config.metrics_listen == "127.0.0.1:9464"
    program, subcommand, *arguments = command("inference")
    assert (Path(program).name, subcommand) == ("isthmus", "inference")
    assert inference.__main__._parser().parse_args(arguments).model == ["some-model"]


def test_units_give_the_programs_time_to_drain() -> None:
    config = load_edge_config(KIT / "systemd" / "edge.toml", {})
    stopping = config.settle_seconds + config.drain_seconds + edge.app._ERROR_SECONDS
    assert int(unit("edge")["TimeoutStopSec"]) >= stopping + CLOSING_SECONDS
    drain = inference.__main__._parser().parse_args(command("inference")[2:]).drain_seconds
    stopping = server.SETTLE_SECONDS + drain + server.GOODBYE_SECONDS + server.CLOSE_SECONDS
    assert int(unit("inference")["TimeoutStopSec"]) >= stopping + CLOSING_SECONDS
    for name in UNITS:
        # Otherwise vLLM's processes would get SIGTERM beside their parent, which drains.
        assert unit(name)["KillMode"] == "mixed"


# Proxies


def directives() -> dict[str, list[str]]:
    """Arguments of each directive of the nginx file; the last one of a name."""
    found: dict[str, list[str]] = {}

    def walk(block: list[dict[str, Any]]) -> None:
        for each in block:
            found[each["directive"]] = each["args"]
            walk(each.get("block", []))

    walk(parsed_nginx(NGINX.read_text())["config"][0]["parsed"])
    return found


def parsed_nginx(text: str) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(f"events {{}}\nhttp {{\n{text}\n}}\n")
        file.flush()
        return crossplane.parse(file.name, strict=True)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_nginx_file_has_known_directives_where_they_may_be() -> None:
    assert parsed_nginx(NGINX.read_text())["errors"] == []
    broken = NGINX.read_text().replace("proxy_buffering", "proxy_bufering")
    assert "proxy_bufering" in parsed_nginx(broken)["errors"][0]["error"]


def test_nginx_does_not_buffer_and_outlasts_the_edge() -> None:
    found = directives()
    for name in ("proxy_buffering", "proxy_request_buffering", "gzip", "proxy_ignore_client_abort"):
        assert found[name] == ["off"]
    edge_bound = EdgeConfig().max_body_bytes
    # The edge refuses a body first, in OpenAI's format.
    assert int(found["client_max_body_size"][0].removesuffix("m")) > 2**-20 * edge_bound
    assert seconds(found["proxy_read_timeout"][0]) > EdgeConfig().request_seconds
    # Whoever closes an idle connection first, no request meets a closed one.
    assert seconds(found["keepalive_timeout"][0]) < KEEP_ALIVE_SECONDS


def read_by_envoy(text: str) -> str:
    """What the API has against a bootstrap file; empty if nothing."""
    uv = Path(sys.executable).parent / "uv"
    alone = ("run", "--quiet", "--no-project", "--isolated", "--python", sys.executable)
    done = subprocess.run(
        [uv, *alone, "--with", XDS, "--with", "pyyaml", "python", "-c", READ_ENVOY],
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stderr if done.returncode else ""


def test_envoy_file_has_the_fields_of_the_api() -> None:
    text = (KIT / "envoy" / "envoy.yaml").read_text()
    assert read_by_envoy(text) == ""
    assert 'no field named "retry_onn"' in read_by_envoy(text.replace("retry_on:", "retry_onn:"))


def test_envoy_does_not_buffer_and_outlasts_the_edge() -> None:
    [chain] = ENVOY["static_resources"]["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    assert seconds(manager["stream_idle_timeout"]) > EdgeConfig().request_seconds
    assert [each["name"] for each in manager["http_filters"]] == ["router"], "none that buffers"
    [route] = manager["route_config"]["virtual_hosts"][0]["routes"]
    # Envoy's own default would end every stream after 15 s.
    assert route["route"]["timeout"] == "0s"
    [cluster] = ENVOY["static_resources"]["clusters"]
    [options] = cluster["typed_extension_protocol_options"].values()
    assert seconds(options["common_http_protocol_options"]["idle_timeout"]) < KEEP_ALIVE_SECONDS


@pytest.fixture
async def behind_nginx(
    tmp_path: Path,
) -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Event]]:
    """nginx with our file, before a server that streams.

    Yields nginx's address, an event that lets the server send its second part, and one that it
    sets when its client has left.
    """
    further, left = asyncio.Event(), asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await further.wait()
        except asyncio.CancelledError:
            left.set()
            raise
        await response.write(b"data: 2\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/stream", stream)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = NGINX.read_text().replace(":8000", f":{runner.addresses[0][1]}")
    text = text.replace("listen 443 ssl http2", f"listen 127.0.0.1:{port}")
    text = re.sub(r" *ssl_.*\n", "", text)
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = tmp_path / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{text}}}\n"
    )
    nginx = await asyncio.create_subprocess_exec("nginx", "-p", str(tmp_path), "-c", str(path))
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}/v1/stream", further, left
    finally:
        nginx.terminate()
        await nginx.wait()
        await runner.cleanup()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
async def test_nginx_passes_on_each_event_and_that_the_client_leaves(
    behind_nginx: tuple[str, asyncio.Event, asyncio.Event],
) -> None:
    url, further, left = behind_nginx
    async with asyncio.timeout(20), ClientSession() as session:
        async with session.post(url, data=b"x" * 100_000) as response:
            # Sent while the server still waits for us.
            assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
            further.set()
            assert await response.content.readuntil(b"\n\n") == b"data: 2\n\n"
        further.clear()
        async with session.post(url, data=b"x") as response:
            assert await response.content.readuntil(b"\n\n") == b"data: 1\n\n"
            response.close()
            await left.wait()
