"""Runs a model with several fronts: one process with the engine, and the processes that serve it.

`isthmus up` runs them beside its other programs, and `isthmus inference` by themselves. Front i
listens i ports above the configured one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from inference.config import ModelConfig, ServerConfig
from inference.engines.nodes import nodes_of
from inference.fronts import METRICS_FOLDER, engine_socket, probe_socket
from keys import ConfigError
from launch.child import CannotStartError, Probe, Program
from launch.display import Display
from launch.edges import temporary_folder
from launch.probes import grpc_probe
from launch.supervisor import Supervisor

_LISTENERS: Final = ("listen", "metrics_listen", "gateway_listen")
# Until the connections of calls that ended at the drain are closed.
_SETTLE_SECONDS: Final = 1.5


def inference_programs(
    model: ModelConfig,
    command: Sequence[str],
    listeners: Mapping[str, str],
    environment: Mapping[str, str],
    folder: Path,
) -> list[Program]:
    """The program that serves a model, or those of its fronts and of its engine.

    Args:
        model: The model.
        command: `python -m inference` with all arguments but the addresses.
        listeners: HOST:PORT of the first front, by setting ("listen").
        environment: Of all of them.
        folder: A folder that is made for what several fronts share.

    Raises:
        ConfigError: An address cannot be that of several fronts, or the model cannot have several.
    """
    if model.fronts == 1:
        command = [*command, *_options(listeners, 0, 1)]
        return [Program(model.id, command, environment, grpc_probe(listeners["listen"]))]
    nodes_of(model)  # Refuses engine arguments that do not go with several fronts.
    folder.mkdir(mode=0o700)
    command = [*command, "--shared", str(folder)]
    if "metrics_listen" in listeners:
        metrics = folder / "metrics"
        metrics.mkdir()
        environment = {**environment, METRICS_FOLDER: str(metrics)}
    programs = []
    if model.engine == "vllm":
        probe = _engine_probe(engine_socket(folder))
        programs.append(Program(f"{model.id}-engine", command, environment, probe))
    for index in range(model.fronts):
        socket = probe_socket(folder, index)
        own = [*command, "--front", str(index), "--probe-socket", str(socket)]
        own += _options(listeners, index, model.fronts)
        name = f"{model.id}-{index + 1}"
        programs.append(Program(name, own, environment, grpc_probe(f"unix:{socket}")))
    return programs


def ports_of(models: Sequence[ModelConfig], first: int) -> list[range]:
    """The ports of each model's fronts, from the first port on."""
    ranges = []
    for model in models:
        ranges.append(range(first, first + model.fronts))
        first += model.fronts
    return ranges


def _options(listeners: Mapping[str, str], index: int, count: int) -> list[str]:
    options = []
    for name, address in listeners.items():
        options += [f"--{name.replace('_', '-')}", _address(name, address, index, count)]
    return options


def _address(name: str, address: str, index: int, count: int) -> str:
    """The address of a front, from that of the first.

    Raises:
        ConfigError: It is a Unix socket, or there are not so many ports.
    """
    if count == 1:
        return address
    if address.startswith("unix:"):
        raise ConfigError(f"{name}: {address} is one socket, and the model has {count} fronts")
    host, _, port = address.rpartition(":")
    if int(port) + count - 1 > 65535:
        raise ConfigError(f"{name}: {count} fronts need as many ports from {port} on")
    return f"{host}:{int(port) + index if int(port) else 0}"


def run_fronts(model: ModelConfig, config: ServerConfig, argv: Sequence[str]) -> int:
    """Runs the processes of a model until a signal stops them, and returns the exit status.

    Raises:
        ConfigError: As `inference_programs`.
    """
    addresses = {name: getattr(config, name) for name in _LISTENERS}
    listeners = {name: address for name, address in addresses.items() if address is not None}
    command = [sys.executable, "-m", "inference", *argv]
    display = Display(verbose=True)
    try:
        with temporary_folder() as folder:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            supervisor = Supervisor(
                inference_programs(model, command, listeners, environment, Path(folder) / "fronts"),
                drain_seconds=config.drain_seconds + _SETTLE_SECONDS,
                on_line=display.line,
                on_state=display.state,
                on_ready=display.settle,
            )
            return asyncio.run(supervisor.run())
    except CannotStartError as error:
        display.settle()
        print(f"isthmus inference: {error}", file=sys.stderr)
        return 1
    finally:
        display.settle()


def _engine_probe(socket: Path) -> Probe:
    """Makes a probe that succeeds while the process with the engine takes fronts."""

    async def probe() -> bool:
        _, writer = await asyncio.open_unix_connection(socket)
        writer.close()
        return True

    return probe
