"""Isthmus as a subject: the real programs, with API keys and the scripted engine.

`ISTHMUS` has the default transport: one session between edge and inference. `MESSAGE_A_TOKEN` is
the same edge with its other transport, one call of the public Generate for each request. While the
edge keeps up with the engine's pace, each token of each stream is then a gRPC message, as in a
gateway without step messages. With an engine that runs faster, Generate joins tokens that wait
while a message is being written, and the comparison means less.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from bench.processes import free_port, free_ports, started
from bench.subject import Running, Source
from keys import create_key
from launch.probes import grpc_probe

_TEXT_MODEL: Final = "scripted"
_EMBEDDING_MODEL: Final = "vectors"
# Requests that the engine runs at once: more than any scenario has.
_RUNNING: Final = 4096
# The longest wait for each program to become ready.
_READY_SECONDS: Final = 30


@dataclass(frozen=True)
class Isthmus:
    """An edge and an inference process with the scripted engine.

    Attributes:
        name: Its name in the tables.
        transport: The edge's transport.
        launcher: The module that runs the programs; "" for themselves.
    """

    name: str
    transport: str
    launcher: str = ""

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts inference, then the edge, and waits for a first response."""
        config = _config(source)
        with stack(config, _TEXT_MODEL, _READY_SECONDS, self.transport, self.launcher) as running:
            embedding_model = _EMBEDDING_MODEL if source.dimensions else ""
            yield dataclasses.replace(running, embedding_model=embedding_model)


@contextlib.contextmanager
def stack(
    configuration: str,
    model: str,
    ready_seconds: float,
    transport: str,
    launcher: str = "",
    *,
    embeds: bool = False,
    fronts: int = 1,
    **variables: str,
) -> Iterator[Running]:
    """Runs an inference process and an edge, with API keys.

    Args:
        configuration: The text of the configuration file, in TOML.
        model: The model of the first request, which shows that the stack is ready.
        ready_seconds: The longest wait for each program.
        transport: The edge's transport.
        launcher: The module that runs the programs; "" for themselves.
        embeds: Whether the first request is for a vector instead of a chat.
        fronts: Those of the one model; several need a launcher.
        variables: Further variables of the inference process's environment.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys.json"
        _, key = create_key(keys, "bench")
        _, edge_key = create_key(keys, "edge", scope="edge")
        config = folder / "isthmus.toml"
        config.write_text(configuration, encoding="utf-8")
        port, grpc_port = free_port(), free_ports(fronts)
        grpc_address = f"127.0.0.1:{grpc_port}"
        upstream = f"{grpc_address}-{grpc_port + fronts - 1}"
        python = [sys.executable, "-m", *([launcher] if launcher else [])]
        inference = [*python, "inference", "--config", str(config)]
        inference += ["--listen", grpc_address, "--keys", str(keys), "--drain-seconds", "1"]
        edge = [*python, "edge", "--port", str(port), "--upstream", upstream]
        edge += ["--transport", transport, "--keys", str(keys)]
        edge += ["--settle-seconds", "0", "--drain-seconds", "1"]
        url = f"http://127.0.0.1:{port}"
        with started("isthmus-inference", inference, **variables) as worker:
            worker.wait_until_listening(grpc_port, ready_seconds)
            if fronts > 1:
                asyncio.run(_wait_until_serving(grpc_port, fronts, ready_seconds))
            with started("isthmus-edge", edge, ISTHMUS_EDGE_TOKEN=edge_key) as gateway:
                wait = gateway.wait_until_embedding if embeds else gateway.wait_until_chatting
                seconds = wait(url, model, key, ready_seconds)
                groups: dict[str, tuple[int, ...]] = {
                    "edge": (gateway.pid,),
                    "worker": (worker.pid,),
                }
                yield Running(url, model, groups, key=key, start_seconds=seconds)


async def _wait_until_serving(first: int, count: int, seconds: float) -> None:
    """Waits for all fronts: the load would otherwise begin with those that are there."""
    async with asyncio.timeout(seconds):
        for port in range(first, first + count):
            probe, serves = grpc_probe(f"127.0.0.1:{port}"), False
            while not serves:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    serves = await probe()
                await asyncio.sleep(0.1)


def _config(source: Source) -> str:
    lines = [
        "[[models]]",
        f'id = "{_TEXT_MODEL}"',
        'engine = "scripted"',
        f"max_running = {_RUNNING}",
        "[models.engine_args]",
        f"tokens = {source.tokens}",
        f"tokens_per_step = {source.tokens_per_step}",
        f"step_seconds = {source.step_seconds}",
    ]
    if source.dimensions:
        lines += [
            "[[models]]",
            f'id = "{_EMBEDDING_MODEL}"',
            'engine = "scripted-embedding"',
            "[models.engine_args]",
            f"dimensions = {source.dimensions}",
        ]
    return "\n".join(lines) + "\n"


ISTHMUS: Final = Isthmus("isthmus", "session")
MESSAGE_A_TOKEN: Final = Isthmus("isthmus, a message a token", "generate")
SWITCHED_METRICS: Final = Isthmus("isthmus", "session", "bench.metrics_switch")
