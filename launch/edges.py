"""Runs several edge processes on one port: `isthmus edge --processes N`, `isthmus up --edges N`.

The kernel spreads connections over the processes. Clients see one edge: the inference processes
count the allowances of keys, and the edge processes share the directory of image files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edge.__main__ import configuration
from keys import ConfigError
from launch.child import CannotStartError, Program
from launch.display import Display
from launch.probes import edge_probe
from launch.supervisor import Supervisor

# The path of a Unix socket has at most 107 bytes, with the folder's own name and the socket's.
_LONGEST_TMPDIR_BYTES: Final = 60


def edge_programs(
    count: int, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> list[Program]:
    """Makes the programs of `count` edges, which share the port if there are several.

    Each is probed on a socket of its own in `folder`: on the port another edge could answer.
    """
    names = ["edge"] if count == 1 else [f"edge-{number}" for number in range(1, count + 1)]
    programs = []
    for name in names:
        socket = folder / f"{name}.socket"
        command = [sys.executable, "-m", "edge", *arguments, "--probe-socket", str(socket)]
        command += ["--reuse-port"] if count > 1 else []
        programs.append(Program(name, command, environment, edge_probe(socket), stop_first=True))
    return programs


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a folder in which a socket has a short enough path, also where TMPDIR is long."""
    is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TMPDIR_BYTES
    return tempfile.TemporaryDirectory(prefix="isthmus-", dir="/tmp" if is_long else None)  # noqa: S108


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
        with temporary_folder() as folder:
            supervisor = Supervisor(
                edge_programs(count, arguments, environment, Path(folder)),
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
