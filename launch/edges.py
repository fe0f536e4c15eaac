"""Runs several edge processes on one port: `isthmus edge --processes N`, `isthmus up --edges N`.

The kernel spreads connections over the processes. Clients see one edge: the inference processes
count the allowances of keys, and the edge processes share the directory of image files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from edge.__main__ import configuration
from edge.config import EdgeConfig
from keys import ConfigError
from launch.child import CannotStartError, Program
from launch.display import Display
from launch.probes import http_probe
from launch.supervisor import Supervisor


def edge_programs(
    count: int, arguments: Sequence[str], environment: Mapping[str, str], config: EdgeConfig
) -> list[Program]:
    """Makes the programs of `count` edges, which share the port if there are several."""
    command = [sys.executable, "-m", "edge", *arguments]
    tls = config.tls_certificate is not None
    probe = http_probe(reachable(config.host), config.port, tls=tls)
    if count == 1:
        return [Program("edge", command, environment, probe, stop_first=True)]
    command.append("--reuse-port")
    return [
        Program(f"edge-{number}", command, environment, probe, stop_first=True)
        for number in range(1, count + 1)
    ]


def reachable(host: str) -> str:
    """Returns the host at which this machine reaches a listener on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104


def positive(text: str) -> int:
    """Parses a number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def run_edges(count: int, arguments: Sequence[str]) -> int:
    """Runs several edges until a signal stops them, and returns the exit status."""
    display = Display(verbose=True)
    try:
        config = configuration(arguments)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        supervisor = Supervisor(
            edge_programs(count, arguments, environment, config),
            drain_seconds=config.settle_seconds + config.drain_seconds,
            on_line=display.line,
            on_state=display.state,
            on_ready=display.settle,
        )
        return asyncio.run(supervisor.run())
    except (ConfigError, CannotStartError) as error:
        display.settle()
        print(f"isthmus edge: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        display.settle()
