"""`python -m edge`: OpenAI's REST API in front of inference services."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from edge.app import run_until_stopped
from edge.config import ConfigError, EdgeConfig, load_edge_config


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, serves, and returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return uvloop.run(run_until_stopped(configuration(argv)))
    except (ConfigError, OSError) as error:
        print(f"isthmus edge: {error}", file=sys.stderr)
        return 2


def configuration(argv: Sequence[str] | None) -> EdgeConfig:
    """What a command line, its configuration file and the environment say together.

    Raises:
        ConfigError: It cannot be used.
        SystemExit: The command line is wrong, or asks for help.
    """
    arguments = vars(_parser().parse_args(argv))
    path = arguments.pop("config")
    # A credential on the command line would be seen by every user of the machine.
    arguments["upstream_token"] = os.environ.get("ISTHMUS_EDGE_TOKEN")
    return load_edge_config(path, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isthmus edge",
        description=__doc__,
        epilog="`isthmus edge --processes N` runs several behind one port. ISTHMUS_EDGE_TOKEN "
        "holds the edge's credential for upstreams that want one.",
    )
    add = parser.add_argument
    add("--config", type=Path, help="TOML file; its [edge] table holds any member of EdgeConfig")
    add("--host", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, help="port to listen on (default 8000)")
    add("--reuse-port", action="store_true", default=None, help="share the port with other edges")
    add("--upstream", action="append", dest="upstreams", help="HOST:PORT of a service (repeatable)")
    add("--transport", choices=("session", "generate"), help="way to the services")
    add("--keys", dest="keys_file", help="API keys; needed off loopback")
    add("--upstream-ca", help="PEM file: TLS towards upstreams")
    add("--upstream-certificate", help="PEM file: the edge's own certificate")
    add("--upstream-key", help="PEM file: its key")
    add("--allow-plaintext", action="store_true", default=None, help="no TLS off loopback")
    add("--settle-seconds", type=float, help="between 503 on /ready and a closed port")
    add("--drain-seconds", type=float, help="bound of a stop (default 30)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
