"""The programs of a soak: two inference services, two edges before both, and their supervisor."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from bench.processes import ROOT, environment
from bench.soak.plan import (
    DIMENSIONS,
    EMBEDDING_MODEL,
    IMAGE_MODEL,
    IMAGE_SIDE,
    IMAGE_STEPS,
    STEP_SECONDS,
    TEXT_MODEL,
)
from keys import create_key
from launch.child import Child, Program, Timing
from launch.probes import edge_probe, grpc_probe
from launch.supervisor import Supervisor

SERVICES: Final = ("service-a", "service-b")
EDGES: Final = ("edge-a", "edge-b")
# Seconds that the programs may take to start, and that requests may take at the end.
_START_SECONDS: Final = 60.0
_DRAIN_SECONDS: Final = 10.0
_TIMING: Final = Timing(
    first_delay_seconds=0.5, max_delay_seconds=0.5, probe_seconds=0.2, ready_probe_seconds=1.0
)
# Bytes of responses that an edge keeps: reached after minutes, and enough for the seconds until a
# later request refers to a response.
_RESPONSES_BYTES: Final = 1024**2
# Ports below those that the kernel gives to outgoing connections. Otherwise such a connection could
# take the port of a program between its end and its restart.
_PORTS: Final = range(20_000, 30_000)
# The last line of a traceback, or what asyncio prints about a forgotten task.
_EXCEPTION: Final = re.compile(r"^[\w.]+(?:Error|Exception)\b|was never retrieved")
_CONFIG: Final = f"""
[[models]]
id = "{TEXT_MODEL}"
engine = "scripted"
[models.engine_args]
step_seconds = {STEP_SECONDS}
[[models]]
id = "{EMBEDDING_MODEL}"
engine = "scripted-embedding"
[models.engine_args]
dimensions = {DIMENSIONS}
[[models]]
id = "{IMAGE_MODEL}"
engine = "scripted-image"
[models.engine_args]
steps = {IMAGE_STEPS}
step_seconds = {STEP_SECONDS}
width = {IMAGE_SIDE}
height = {IMAGE_SIDE}
[edge]
responses_bytes = {_RESPONSES_BYTES}
"""


@dataclass
class Stack:
    """The running programs.

    Attributes:
        supervisor: Starts each program again that ends.
        edges: The base URL of each edge, by its name.
        services: HOST:PORT of each service, by its name.
        keys_file: The keys.
        key: The API key of most requests.
        second_key: A key that is revoked and put back.
        second_id: Its id in the keys file.
        ledger: The file in which the services note executions.
        stopping: Set once the programs are being stopped.
        ended: The supervisor; its result is its exit status, 0 after a clean stop.
    """

    supervisor: Supervisor
    edges: dict[str, str]
    services: dict[str, str]
    keys_file: Path
    key: str
    second_key: str
    second_id: str
    ledger: Path
    stopping: asyncio.Event
    ended: asyncio.Task[int] = field(init=False)
    children: dict[str, Child] = field(default_factory=dict)

    def ports(self) -> dict[str, int]:
        """The port of each program, by its name."""
        return {
            name: int(address.rpartition(":")[2])
            for name, address in (self.edges | self.services).items()
        }


@asynccontextmanager
async def running(folder: Path, logs: Path) -> AsyncIterator[Stack]:
    """Starts the programs, yields a Stack when all are ready, and stops them cleanly.

    Args:
        folder: Holds the keys, the configuration and the ledger.
        logs: Receives NAME.log of each program.

    Raises:
        TimeoutError: The programs are not ready in time.
        CannotStartError: A program was given up.
    """
    keys, config, ledger = folder / "keys.json", folder / "isthmus.toml", folder / "ledger"
    _, key = create_key(keys, "soak")
    second, second_key = create_key(keys, "second")
    _, edge_key = create_key(keys, "edge", scope="edge")
    config.write_text(_CONFIG, encoding="utf-8")
    ledger.touch()
    ports = _free_ports()
    services = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
    edges = {name: f"http://127.0.0.1:{next(ports)}" for name in EDGES}
    path = f"{ROOT}:{ROOT / 'generated'}"
    kept = environment(PYTHONPATH=path, ISTHMUS_EDGE_TOKEN=edge_key)
    programs = []
    for name, address in services.items():
        command = [sys.executable, "-m", "bench.soak.service", str(ledger), "--config", str(config)]
        command += ["--listen", address, "--keys", str(keys)]
        programs.append(Program(name, command, kept, grpc_probe(address)))
    for name, url in edges.items():
        port = url.rpartition(":")[2]
        command = [sys.executable, "-m", "edge", "--port", port, "--keys", str(keys)]
        for address in services.values():
            command += ["--upstream", address]
        socket = keys.parent / f"{name}.socket"
        command += ["--probe-socket", str(socket), "--config", str(config)]
        programs.append(Program(name, command, kept, edge_probe(socket), True))
    with _Logs(logs, [*services, *edges]) as written:
        ready, stopping = asyncio.Event(), asyncio.Event()
        supervisor = Supervisor(
            programs,
            drain_seconds=_DRAIN_SECONDS,
            on_line=written.line,
            on_state=written.line,
            on_ready=ready.set,
            on_stopping=stopping.set,
            timing=_TIMING,
        )
        stack = Stack(
            supervisor, edges, services, keys, key, second_key, second.id, ledger, stopping
        )
        stack.children = {child.program.name: child for child in supervisor.children}
        run = asyncio.create_task(supervisor.run())
        stack.ended = run
        try:
            async with asyncio.timeout(_START_SECONDS):
                await ready.wait()
            yield stack
        finally:
            if not run.done():
                supervisor.interrupt()
            await run


class _Logs(ExitStack):
    """A log file for each program.

    Args:
        folder: Created if there is none.
        names: The programs.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[str]] = {
            name: self.enter_context((folder / f"{name}.log").open("w", encoding="utf-8"))
            for name in names
        }

    def line(self, name: str, text: str) -> None:
        """Writes a line of a program's output, or a change of its state."""
        self._files[name].write(text + "\n")
        self._files[name].flush()


def unexpected_exceptions(logs: Path) -> list[str]:
    """Returns each last line of a traceback that no cue of a request explains, with its program."""
    return [
        f"{path.stem} printed: {line[:150]}"
        for path in sorted(logs.glob("*.log"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if _EXCEPTION.search(line) and "ScriptedFaultError: canary" not in line
    ]


def _free_ports() -> Iterator[int]:
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
