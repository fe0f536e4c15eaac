"""A model with several fronts, run by `isthmus inference` and by `isthmus up`; no engine is shared.

With a scripted engine each front has its own. tests/engines/test_front_and_core.py has the part of
vLLM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import psutil
import pytest
from aiohttp import ClientSession
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference.config import ModelConfig
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from keys import ConfigError
from launch.edges import temporary_folder
from launch.fronts import inference_programs
from tests.certificates import Authority
from tests.conftest import eventually
from tests.contract.programs import Program, fixed_port

TABLE = """
[[models]]
id = "m"
engine = "scripted"
fronts = 2
max_running = 5
max_choices = 2
requests_per_minute = 6
[models.engine_args]
tokens = 400
step_seconds = 0.01
"""


def ports(count: int) -> int:
    """The first of so many free ports."""
    while True:
        first = fixed_port()
        with ExitStack() as sockets:
            try:
                for port in range(first, first + count):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


@asynccontextmanager
async def launched(
    folder: Path, table: str, *command: str, environment: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Program]:
    """`isthmus COMMAND` with this configuration, and a temporary directory of its own."""
    config = folder / "isthmus.toml"
    config.write_text(table)
    arguments = ["-m", "launch", *command, "--config", str(config)]
    program = Program(arguments, 0, folder / "log", environment)
    try:
        yield program
    finally:
        await program.stop()


def channels(ends: AsyncExitStack, first: int, count: int = 2) -> list[grpc.aio.Channel]:
    made = [grpc.aio.insecure_channel(f"127.0.0.1:{first + index}") for index in range(count)]
    for channel in made:
        ends.push_async_callback(channel.close)
    return made


async def serves(channel: grpc.aio.Channel, program: Program, seconds: float = 60.0) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check
    async with asyncio.timeout(seconds):
        while True:
            assert program.process.poll() is None, program.log.read_text()
            with suppress(grpc.aio.AioRpcError):  # Nothing listens.
                found = await check(health_pb2.HealthCheckRequest(), timeout=5)
                if found.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.05)


def call(channel: grpc.aio.Channel, tokens: int = 1) -> Any:
    request = GenerateRequest(model="m", text="Hello")
    request.stopping.max_tokens = tokens
    return InferenceServiceStub(channel).Generate(request, timeout=60)


async def answer(channel: grpc.aio.Channel, tokens: int = 1) -> int:
    """The number of messages with text."""
    return sum([len(part.deltas) > 0 async for part in call(channel, tokens)])


def front(program: Program, index: int) -> psutil.Process:
    """The process of a front."""
    (found,) = (
        process
        for process in psutil.Process(program.process.pid).children(recursive=True)
        if ("--front", str(index)) in zip(process.cmdline(), process.cmdline()[1:], strict=False)
    )
    return found


async def test_fronts_serve_each_at_its_port_and_count_together(tmp_path: Path) -> None:
    first, metrics = ports(2), ports(2)
    listeners = ["--listen", f"127.0.0.1:{first}", "--metrics-listen", f"127.0.0.1:{metrics}"]
    async with (
        AsyncExitStack() as ends,
        launched(tmp_path, TABLE, "inference", *listeners) as program,
    ):
        both = channels(ends, first)
        for channel in both:
            await serves(channel, program)
        processes = psutil.Process(program.process.pid).children(recursive=True)
        # One front dies in a call; the other's call goes on.
        calls = [aiter(call(channel, 400)) for channel in both]
        for each in calls:
            await anext(each)
        front(program, 1).kill()
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            async for _ in calls[1]:
                pass
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sum([len(part.deltas) > 0 async for part in calls[0]]) > 1
        await serves(both[1], program)
        # Both calls before count, also that of the front that has died.
        for turn in (0, 1, 1, 0):
            await answer(both[turn])
        for channel in both:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await answer(channel)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with ClientSession() as http:
            permits = Counter[str]()
            for port in (metrics, metrics + 1):
                async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
                    for line in (await response.text()).splitlines():
                        if line.startswith("isthmus_permits{"):
                            permits[line.split()[0]] += int(float(line.split()[1]))
        assert permits == {'isthmus_permits{model="m"}': 5}
        program.send(signal.SIGTERM)
        assert await program.ended() == 0
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        assert list(tmp_path.glob("isthmus-*")) == []


async def test_fronts_that_demand_certificates_are_probed_without(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, first = authority.pair("127.0.0.1"), ports(2)
    command = ["inference", "--listen", f"127.0.0.1:{first}"]
    command += ["--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)]
    command += ["--tls-client-ca", str(authority.path)]
    async with launched(tmp_path, TABLE, *command) as program:
        for name in ("m-1", "m-2"):
            await eventually(lambda name=name: f"{name}: ready" in program.log.read_text(), 60)
        program.send(signal.SIGTERM)
        assert await program.ended() == 0


async def test_up_gives_the_edge_all_fronts(tmp_path: Path) -> None:
    rest, first = fixed_port(), ports(2)
    options = ["--port", str(rest), "--grpc-port", str(first)]
    async with (
        launched(tmp_path, TABLE, "up", *options) as program,
        ClientSession(f"http://127.0.0.1:{rest}") as http,
    ):
        await eventually(lambda: "Isthmus is ready" in program.log.read_text(), 60)
        banner = program.log.read_text()
        assert [f"gRPC  127.0.0.1:{first + index}   m" in banner for index in (0, 1, 2)] == [
            *(True, True),
            False,
        ]
        body = {"model": "m", "max_tokens": 1}
        statuses = []
        for number in range(8):
            async with http.post(
                "/v1/completions", json=body | {"prompt": str(number)}
            ) as response:
                statuses.append(response.status)
                await response.read()
        # Six a minute, whichever front the prompts lead to.
        assert statuses == [200] * 6 + [429] * 2
        serving: list[str] = []
        async with asyncio.timeout(30):
            while [line.rpartition(" ")[2] for line in serving] != ["1.0"] * 2:
                await asyncio.sleep(0.1)
                async with http.get("/metrics") as response:
                    lines = (await response.text()).splitlines()
                serving = [line for line in lines if line.startswith("isthmus_replica_serving")]
        for port in (first, first + 1):
            assert any(f'replica="ipv4:127.0.0.1:{port}"' in line for line in serving)
        front(program, 0).kill()
        await eventually(lambda: "m-1: ended with SIGKILL" in program.log.read_text())
        async with http.get("/ready") as response:
            assert response.status == 200
        program.send(signal.SIGTERM)
        assert await program.ended() == 0


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(id="m", engine="vllm", source="/m", fronts=3, max_choices=2, **settings)


@pytest.mark.parametrize(
    ("listeners", "told"),
    [
        ({"listen": "unix:/tmp/x"}, "listen: unix:/tmp/x is one socket, .* 3 fronts"),
        ({"listen": "unix:/tmp/x:1"}, "listen: unix:/tmp/x:1 is one socket"),
        ({"listen": "[::1]:65534"}, "listen: 3 fronts need as many ports from 65534 on"),
        ({"listen": "h:1", "metrics_listen": "h:65535"}, "metrics_listen: 3 fronts need"),
    ],
)
def test_address_that_cannot_be_that_of_several_fronts_is_refused(
    listeners: dict[str, str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        inference_programs(model(), [], listeners, {}, tmp_path / "fronts")


def test_programs_of_fronts_have_an_engine_and_consecutive_ports(tmp_path: Path) -> None:
    listeners = {"listen": "[::1]:7", "metrics_listen": "h:0"}
    programs = inference_programs(model(), ["x"], listeners, {}, tmp_path / "fronts")
    assert [program.name for program in programs] == ["m-engine", "m-1", "m-2", "m-3"]
    assert "--listen" not in programs[0].command
    for index, program in enumerate(programs[1:]):
        options = list(program.command)
        assert options[options.index("--listen") + 1] == f"[::1]:{7 + index}"
        assert options[options.index("--metrics-listen") + 1] == "h:0"


def test_sockets_of_fronts_have_short_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in range(20, 100, 4):
        long = tmp_path / ("x" * length)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with temporary_folder() as folder:
            programs = inference_programs(
                model(), [], {"listen": "h:1"}, {}, Path(folder) / "fronts-10"
            )
            command = list(programs[-1].command)
            path = command[command.index("--probe-socket") + 1]
            # Front 63 has a digit more.
            assert len(path) + 1 <= 107
