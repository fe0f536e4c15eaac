"""`python -m edge`: OpenAI's REST API in front of inference services."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import uvloop

from contract.access_log import AccessLogForm
from edge.app import run_until_stopped
from edge.config import EdgeConfig, load_edge_config
from keys import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until the process is stopped; returns the exit status, 2 for a bad configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return uvloop.run(run_until_stopped(configuration(argv)))
    except (ConfigError, OSError) as error:
        print(f"isthmus edge: {error}", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        return 130  # A second signal.


def configuration(argv: Sequence[str] | None) -> EdgeConfig:
    """Reads the configuration from the command line, its --config file and the environment.

    Options override the file. The environment variable ISTHMUS_EDGE_TOKEN is `upstream_token`.

    Args:
        argv: The arguments without the program's name; None reads sys.argv.

    Raises:
        ConfigError: The file cannot be read or a value is wrong.
        SystemExit: An option is unknown, or --help was given.
    """
    arguments = vars(_parser().parse_args(argv))
    path = arguments.pop("config")
    # Not an option: every user of the machine can read the command lines of its processes.
    arguments["upstream_token"] = os.environ.get("ISTHMUS_EDGE_TOKEN") or None
    return load_edge_config(path, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isthmus edge")
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of an edge."""
    parser.description = "OpenAI's REST API in front of inference services."
    parser.epilog = (
        "The environment variable ISTHMUS_EDGE_TOKEN holds the edge's credential for upstreams "
        "that require one. All settings: docs/configuration.md."
    )
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file; its [edge] table sets any attribute of EdgeConfig",
    )
    add("--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)")
    add("--port", metavar="PORT", type=int, help="port to listen on (default 8000)")
    add("--reuse-port", action="store_true", default=None, help="share the port with other edges")
    add(
        "--upstream",
        metavar="HOST:PORT",
        action="append",
        dest="upstreams",
        help="address of a service (repeatable)",
    )
    add(
        "--probe-socket",
        metavar="PATH",
        help="Unix socket on which this process alone answers probes",
    )
    add(
        "--transport",
        choices=("session", "generate"),
        help="one stream to each service for all text requests (session, the default), or one "
        "gRPC call for each (generate)",
    )
    add(
        "--keys",
        metavar="FILE",
        dest="keys_file",
        help="file of API keys; required if --host is not loopback",
    )
    _add_operations(parser)
    _add_certificates(parser)


def _add_operations(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--metrics-listen",
        metavar="HOST:PORT",
        help="address of GET /metrics without keys (default: on --port)",
    )
    add(
        "--access-log",
        choices=get_args(AccessLogForm),
        help="one line on standard output for each finished request (default off)",
    )
    add(
        "--otlp-endpoint",
        metavar="URL",
        help="URL of an OTLP collector for traces; needs the extra otel",
    )
    add(
        "--settle-seconds",
        metavar="SECONDS",
        type=float,
        help="on a stop, seconds between /ready turning 503 and the port closing (default 0.5)",
    )
    add(
        "--drain-seconds",
        metavar="SECONDS",
        type=float,
        help="on a stop, seconds that running requests may still take (default 30)",
    )
    add(
        "--memory-budget-bytes",
        metavar="BYTES",
        type=int,
        help="what all requests may hold together (default 1/16 of the memory)",
    )


def _add_certificates(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tls-certificate",
        metavar="FILE",
        help="PEM file of the edge's certificate with its chain, for HTTPS",
    )
    add("--tls-key", metavar="FILE", help="PEM file of that certificate's private key")
    add(
        "--upstream-ca",
        metavar="FILE",
        help="PEM file of the CA that signs the upstreams; turns TLS on",
    )
    add(
        "--upstream-certificate",
        metavar="FILE",
        help="PEM file of the edge's own certificate, for mutual TLS",
    )
    add("--upstream-key", metavar="FILE", help="PEM file of that certificate's private key")
    add(
        "--allow-plaintext",
        action="store_true",
        default=None,
        help="allow upstreams that are not loopback without TLS",
    )


if __name__ == "__main__":
    sys.exit(main())
