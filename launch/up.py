"""`isthmus up`: runs an inference process for each model of a configuration, and the edge."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

from contract.access_log import AccessLogForm
from edge.config import EdgeConfig, load_edge_config
from inference.config import ModelConfig
from keys import ConfigError, is_loopback
from launch import banner
from launch.child import CannotStartError, Program
from launch.config import DEFAULT, UpConfig, load, load_up_config, write_resolved
from launch.display import Display
from launch.edges import edge_programs, positive, reachable, temporary_folder
from launch.embedded import default_cache_directory
from launch.environment import cpu_count, inference_environment
from launch.fronts import inference_programs, ports_of
from launch.models_command import prepare
from launch.supervisor import Supervisor
from launch.wheel import PrepareError

# The host on which the inference processes listen.
_INFERENCE_HOST = "127.0.0.1"


class UpError(Exception):
    """The stack cannot be started; the message gives the remedy."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The stack that `up` runs: a process for each front of each model, at its port, and the edges.

    `metrics_ports` is empty if the inference processes serve no metrics.
    """

    models: tuple[ModelConfig, ...]
    ports: list[range]
    metrics_ports: list[range]
    edge: EdgeConfig
    edges: int

    @property
    def fronts(self) -> list[ModelConfig]:
        """The model of each port."""
        return [model for model in self.models for _ in range(model.fronts)]

    @property
    def addresses(self) -> list[str]:
        return [f"{_INFERENCE_HOST}:{port}" for port in chain.from_iterable(self.ports)]

    @property
    def metrics(self) -> list[str]:
        return [f"{_INFERENCE_HOST}:{port}" for port in chain.from_iterable(self.metrics_ports)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus up`."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        type=Path,
        default=DEFAULT,
        help="TOML file (default: small built-in models, see README)",
    )
    add("--host", metavar="ADDRESS", help="address of the REST API (default 127.0.0.1)")
    add("--port", metavar="PORT", type=int, help="port of the REST API (default 8000)")
    add(
        "--grpc-port",
        metavar="PORT",
        type=int,
        default=50051,
        help="first gRPC port (default %(default)s)",
    )
    add(
        "--metrics-port",
        metavar="PORT",
        type=int,
        help="first port for metrics of the inference processes, on loopback (default: none)",
    )
    add(
        "--edges",
        metavar="N",
        type=positive,
        default=1,
        help="processes that share the REST port (default 1)",
    )
    add(
        "--keys",
        type=Path,
        metavar="FILE",
        help="file made with `isthmus keys create`; required off loopback",
    )
    add(
        "--tls-certificate",
        metavar="FILE",
        type=Path,
        help="PEM file of the REST API's certificate, for HTTPS",
    )
    add("--tls-key", metavar="FILE", type=Path, help="PEM file of that certificate's private key")
    _add_more_arguments(parser)


def _add_more_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--cache-dir",
        metavar="FOLDER",
        type=Path,
        default=default_cache_directory(),
        help="default: %(default)s",
    )
    add(
        "--drain-seconds",
        metavar="SECONDS",
        type=float,
        help="how long requests may go on at a stop (default 30)",
    )
    add(
        "--access-log",
        choices=get_args(AccessLogForm),
        help="one line for each finished request, of the edge and of its model (default off)",
    )
    add(
        "--otlp-endpoint",
        metavar="URL",
        help="URL of an OTLP collector for traces; needs the extra otel",
    )
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="show everything that the programs and their libraries write, also during the start",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepares models, runs everything until interrupted, and returns the exit status."""
    # Until the event loop handles signals, SIGTERM raises KeyboardInterrupt like SIGINT, so that
    # the preparation ends the programs it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    display = None
    try:
        path: Path = arguments.config
        plan = _plan(path, arguments)
        _check_ports(plan)
        display = Display(verbose=arguments.verbose)
        sources = prepare(plan.models, arguments.cache_dir, display)
        with temporary_folder() as directory:
            resolved = Path(directory) / "isthmus.toml"
            write_resolved(path, sources, resolved)
            programs = _programs(plan, resolved, sources, verbose=arguments.verbose)
            return asyncio.run(_run(plan, programs, display))
    except (UpError, PrepareError, ConfigError, CannotStartError) as error:
        if display is not None:
            display.settle()
        print(f"isthmus up: {error}", file=sys.stderr)
        if isinstance(error, CannotStartError) and not arguments.verbose:
            print("`isthmus up -v` shows more than errors of its libraries.", file=sys.stderr)
        return 1 if isinstance(error, CannotStartError) else 2
    except KeyboardInterrupt:
        return 130
    finally:
        if display is not None:
            display.settle()


def _plan(path: Path, arguments: argparse.Namespace) -> _Plan:
    models = load(path, here=True)
    ports = ports_of(models, arguments.grpc_port)
    up = load_up_config(path)
    if arguments.metrics_port is not None:
        up = UpConfig(metrics_port=arguments.metrics_port)
    first = up.metrics_port
    metrics_ports = [] if first is None else ports_of(models, first)
    overrides = {
        "host": arguments.host,
        "port": arguments.port,
        "keys_file": arguments.keys,
        "tls_certificate": arguments.tls_certificate,
        "tls_key": arguments.tls_key,
        "drain_seconds": arguments.drain_seconds,
        "access_log": arguments.access_log,
        "otlp_endpoint": arguments.otlp_endpoint,
        "upstreams": [
            f"{_INFERENCE_HOST}:{each[0]}" + (f"-{each[-1]}" if len(each) > 1 else "")
            for each in ports
        ],
    }
    try:
        edge = load_edge_config(path, overrides)
    except ConfigError:
        # Replace the commands in the message, which are for `isthmus edge`.
        host = arguments.host
        if host is None or is_loopback(host) or arguments.keys is not None:
            raise
        raise UpError(
            f"Refusing to listen on {host} without API keys: anybody could use it. Run\n"
            "  isthmus keys create NAME --keys keys.json\n"
            f"  isthmus up --host {host} --keys keys.json"
        ) from None
    if edge.keys_file is not None and not edge.keys_file.exists():
        raise UpError(
            f"There is no keys file {edge.keys_file}. Make one with\n"
            f"  isthmus keys create NAME --keys {edge.keys_file}"
        )
    return _Plan(models, ports, metrics_ports, edge, arguments.edges)


def _check_ports(plan: _Plan) -> None:
    """Raises UpError if a port is taken, before the models load for a minute."""
    wanted = [(plan.edge.host, plan.edge.port, "--port")]
    for option, ranges in (("--grpc-port", plan.ports), ("--metrics-port", plan.metrics_ports)):
        wanted += [(_INFERENCE_HOST, port, option) for port in chain.from_iterable(ranges)]
    for host, port, option in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                reason = error.strerror if isinstance(error, OSError) else "there is no such port"
                raise UpError(
                    f"Cannot listen on {host}:{port}: {reason}.\n"
                    f"Stop what uses it, or choose another with {option}."
                ) from error


def _programs(
    plan: _Plan, resolved: Path, sources: dict[str, Path], *, verbose: bool
) -> list[Program]:
    environment = dict(os.environ)
    keys = inference_keys = list[str]()
    edge_environment = {**environment, "PYTHONUNBUFFERED": "1"}
    if plan.edge.keys_file is not None:
        # A credential for this run: the edge gets it in its environment, and the inference
        # processes get its digest as an argument, which other users of the machine can read.
        token = secrets.token_urlsafe(32)
        edge_environment["ISTHMUS_EDGE_TOKEN"] = token
        keys = ["--keys", str(plan.edge.keys_file)]
        digest = hashlib.sha256(token.encode()).hexdigest()
        inference_keys = [*keys, "--edge-token-sha256", digest]
    shared = ["--drain-seconds", str(plan.edge.drain_seconds)]
    shared += ["--access-log", plan.edge.access_log]
    if plan.edge.otlp_endpoint is not None:
        shared += ["--otlp-endpoint", plan.edge.otlp_endpoint]
    common = ["--config", str(resolved)]
    programs = []
    for number, model in enumerate(plan.models):
        local = Path(model.source) if Path(model.source).is_dir() else sources.get(model.id)
        command = [sys.executable, "-m", "inference", *common, "--model", model.id]
        command += [*inference_keys, *shared, *(["--verbose"] if verbose else [])]
        listeners = {"listen": f"{_INFERENCE_HOST}:{plan.ports[number][0]}"}
        if plan.metrics_ports:
            listeners["metrics_listen"] = f"{_INFERENCE_HOST}:{plan.metrics_ports[number][0]}"
        variables = inference_environment(model, local, environment, verbose=verbose)
        folder = resolved.parent / f"fronts-{number}"
        programs += inference_programs(model, command, listeners, variables, folder)
    edge_arguments = [*common, *keys, *shared]
    edge_arguments += ["--host", plan.edge.host, "--port", str(plan.edge.port)]
    for option, file in (
        ("--tls-certificate", plan.edge.tls_certificate),
        ("--tls-key", plan.edge.tls_key),
    ):
        edge_arguments += [option, str(file)] if file is not None else []
    for address in plan.edge.upstreams:
        edge_arguments += ["--upstream", address]
    return programs + edge_programs(plan.edges, edge_arguments, edge_environment, resolved.parent)


async def _run(plan: _Plan, programs: Sequence[Program], display: Display) -> int:
    def ready() -> None:
        display.settle()
        display.show(
            banner.text(
                plan.fronts,
                base_url=_base_url(plan.edge),
                grpc_addresses=plan.addresses,
                metrics_addresses=plan.metrics,
                with_key=plan.edge.keys_file is not None,
            )
        )

    def stopping() -> None:
        display.settle()
        display.show("Stopping: running requests may finish. Press Ctrl-C again to stop at once.")

    supervisor = Supervisor(
        programs,
        drain_seconds=plan.edge.settle_seconds + plan.edge.drain_seconds,
        # Models that load at once on few cores make each other slow.
        starts_at_once=cpu_count(),
        on_line=display.line,
        on_state=display.state,
        on_ready=ready,
        on_stopping=stopping,
    )
    status = await supervisor.run()
    display.show("Stopped." if status == 0 else "Stopped; some processes had to be killed.")
    return status


def _base_url(edge: EdgeConfig) -> str:
    host = reachable(edge.host)
    scheme = "http" if edge.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{edge.port}"
