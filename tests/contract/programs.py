"""Services and edges as child processes, for faults that end or stop a process."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from aiohttp import ClientConnectionError, ClientSession

from inference.config import ModelConfig
from tests.conftest import eventually

ROOT = Path(__file__).parents[2]


def fixed_port() -> int:
    """A free port below those that the kernel gives to outgoing connections.

    Such a connection could take the port of a program between its end and its restart.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program:
    """A running child process, and the port that it serves; `prefix` is a command that runs it."""

    def __init__(
        self,
        arguments: Sequence[str],
        port: int,
        log: Path,
        environment: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.log = log
        path = f"{ROOT}:{ROOT / 'generated'}"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *arguments],
                stdout=output,
                stderr=output,
                env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "TMPDIR": str(log.parent)}
                | environment,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = 20.0) -> int:
        """Its exit status, once it has ended by itself."""
        await eventually(lambda: self.process.poll() is not None, seconds)
        return int(self.process.returncode)

    async def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def service(
    *models: ModelConfig,
    host: str = "127.0.0.1",
    port: int = 0,
    options: Sequence[str] = (),
    start: Sequence[str] = ("-m", "inference"),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Program]:
    """A service; it may still be loading."""
    tables = [
        f"[[models]]\nid = {json.dumps(m.id)}\nengine = {json.dumps(m.engine)}\n"
        + (f"source = {json.dumps(m.source)}\n" if m.source else "")
        + "slow_step_seconds = 60.0\n[models.engine_args]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in m.engine_args.items())
        for m in models
    ]
    port = port or fixed_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "isthmus.toml"
        config.write_text("\n".join(tables), encoding="utf-8")
        arguments = [*start, "--config", str(config), "--listen", f"{host}:{port}"]
        program = Program([*arguments, *options], port, Path(folder) / "log", environment)
        try:
            yield program
        finally:
            await program.stop()


@asynccontextmanager
async def edge(
    *ports: int,
    options: Sequence[str] = (),
    start: Sequence[str] = ("-m", "edge"),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Program]:
    """An edge before the services on these ports, once it is ready."""
    port = fixed_port()
    upstreams = [word for each in ports for word in ("--upstream", f"127.0.0.1:{each}")]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*start, "--port", str(port), *upstreams, *options]
        program = Program(arguments, port, Path(folder) / "log", environment)
        try:
            async with ClientSession() as http, asyncio.timeout(20):
                while await status_of_ready(http, port) != 200:
                    await asyncio.sleep(0.01)
            yield program
        finally:
            await program.stop()


async def status_of_ready(http: ClientSession, port: int) -> int:
    """The status of /ready; 0 while nothing listens."""
    try:
        async with http.get(f"http://127.0.0.1:{port}/ready") as response:
            return response.status
    except ClientConnectionError:
        return 0
