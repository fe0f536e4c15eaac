"""`python -m inference`: serves the models of a configuration file over gRPC.

With `--follow` it is another machine's part of a model instead (inference/follow.py).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, get_args

import uvloop

from contract import process
from contract.access_log import AccessLogForm
from inference.config import ModelConfig, ServerConfig, load_models
from inference.engine_process import keep_until_stopped
from inference.follow import follow_until_stopped
from inference.fronts import Front
from inference.server import run_until_stopped
from keys import ConfigError


def main(
    argv: Sequence[str] | None = None,
    run_fronts: Callable[[ModelConfig, ServerConfig], int] | None = None,
) -> int:
    """Parses the command line and serves; returns the exit status, 2 for a bad configuration.

    Args:
        argv: The arguments; None for those of the process.
        run_fronts: Runs the processes of a model with several fronts; None where this is one of
            them.
    """
    arguments = _parser().parse_args(argv)
    # The engines' libraries tell at INFO what only their developers read.
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for package in ("contract", "inference", "keys"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        models = _models(arguments)
        if arguments.follow is not None:
            return uvloop.run(_run(follow_until_stopped(models, arguments.follow)))
        for model in models:
            model.check_source()
        shared = next((model for model in models if model.fronts > 1), None)
        if shared is None:
            return uvloop.run(_run(run_until_stopped(_config(arguments, models))))
        if len(models) > 1:
            raise ConfigError(
                f"models.{shared.id}.fronts: fronts serve one model; choose it with --model"
            )
        if arguments.shared is None:
            if run_fronts is None:
                raise ConfigError(f"models.{shared.id}.fronts: needs `isthmus inference`")
            return run_fronts(shared, _config(arguments, models))
        return uvloop.run(_run(_part(arguments, shared)))
    except (ConfigError, OSError) as error:
        print(f"isthmus inference: {error}", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        return 130  # A second signal.


async def _part(arguments: argparse.Namespace, model: ModelConfig) -> int:
    """Runs one of the processes of a model with several fronts: a front, or the engine."""
    folder: Path = arguments.shared
    if arguments.front is None:
        return await keep_until_stopped(
            model, folder, arguments.drain_seconds, arguments.otlp_endpoint
        )
    front = Front(folder=folder, index=arguments.front, count=model.fronts)
    return await run_until_stopped(_config(arguments, (front.configured(model),)), front)


async def _run(work: Coroutine[Any, Any, int]) -> int:
    status = 130  # After a second signal this coroutine is cancelled.
    try:
        status = await work
    finally:
        process.end_soon(status)
    return status


def _models(arguments: argparse.Namespace) -> tuple[ModelConfig, ...]:
    models = load_models(arguments.config)
    if arguments.model:
        models = tuple(model for model in models if model.id in arguments.model)
        unknown = set(arguments.model) - {model.id for model in models}
        if unknown:
            raise ConfigError(f"--model: {', '.join(sorted(unknown))} not in {arguments.config}")
    return models


def _config(arguments: argparse.Namespace, models: tuple[ModelConfig, ...]) -> ServerConfig:
    return ServerConfig(
        listen=arguments.listen,
        models=models,
        keys_file=arguments.keys,
        edge_token_sha256=arguments.edge_token_sha256,
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
        tls_client_ca=arguments.tls_client_ca,
        allow_plaintext=arguments.allow_plaintext,
        drain_seconds=arguments.drain_seconds,
        memory_budget_bytes=arguments.memory_budget_bytes,
        gateway_listen=arguments.gateway_listen,
        metrics_listen=arguments.metrics_listen,
        access_log=arguments.access_log,
        otlp_endpoint=arguments.otlp_endpoint,
        probe_socket=arguments.probe_socket,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isthmus inference")
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of an inference process."""
    parser.description = "Serves the models of a configuration over gRPC."
    parser.epilog = "All settings: docs/configuration.md."
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        type=Path,
        required=True,
        help="TOML file with [[models]] tables",
    )
    add("--model", metavar="ID", action="append", help="serve only this id (repeatable)")
    add(
        "--follow",
        type=int,
        metavar="RANK",
        help="be the part of this rank, from 1, of a model that runs on several machines (nnodes); "
        "it serves nothing itself, so only --config, --model and --verbose apply",
    )
    _add_addresses(parser)
    add(
        "--drain-seconds",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="bound of a stop (default %(default)s)",
    )
    add(
        "--access-log",
        choices=get_args(AccessLogForm),
        default="off",
        help="one line on standard output for each finished call (default %(default)s)",
    )
    add(
        "--memory-budget-bytes",
        metavar="BYTES",
        type=int,
        help="what all calls may hold (default 1/16 of memory)",
    )
    add(
        "--otlp-endpoint",
        metavar="URL",
        help="URL of an OTLP collector for traces; needs the extra otel",
    )
    add("-v", "--verbose", action="store_true", help="log what the engines' libraries tell, too")
    # For the processes of a model with several fronts, which the launcher starts (fronts.py).
    add("--shared", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    add("--front", metavar="INDEX", type=int, help=argparse.SUPPRESS)
    add("--probe-socket", metavar="FILE", type=Path, help=argparse.SUPPRESS)


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:50051",
        help="HOST:PORT (default %(default)s)",
    )
    add(
        "--gateway-listen",
        metavar="HOST:PORT",
        help="HOST:PORT of vllm.grpc.engine, for other gateways; needs the extra gateway",
    )
    add(
        "--metrics-listen",
        metavar="HOST:PORT",
        help="HOST:PORT of GET /metrics, without keys (default: none)",
    )
    add("--keys", metavar="FILE", type=Path, help="API keys; needed off loopback")
    add("--edge-token-sha256", metavar="DIGEST", help="digest of the edge's own credential")
    add("--tls-certificate", metavar="FILE", type=Path, help="PEM file")
    add("--tls-key", metavar="FILE", type=Path, help="PEM file")
    add(
        "--tls-client-ca",
        metavar="FILE",
        type=Path,
        help="PEM file; callers must show a certificate of it",
    )
    add("--allow-plaintext", action="store_true", help="listen off loopback without TLS")


if __name__ == "__main__":
    sys.exit(main())
