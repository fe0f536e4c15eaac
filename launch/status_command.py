"""`isthmus status`: shows what a running edge and its services do."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from keys.settings import is_host_and_port
from launch.status import READY, ProcessStatus, Status, status
from launch.status_sources import Look, Sources, look

_MIB: Final = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus status`."""
    add = parser.add_argument
    add(
        "--url",
        metavar="URL",
        default="http://127.0.0.1:8000",
        help="the edge (default: %(default)s)",
    )
    add(
        "--metrics",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="metrics_listen of the edge or of a service; may be repeated",
    )
    add(
        "--grpc",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a service, which is asked for its models; may be repeated",
    )
    add("--key", metavar="KEY", help="API key of edge and services (default: ISTHMUS_API_KEY)")
    add("--ca", type=Path, metavar="FILE", help="CA of HTTPS, and for TLS to services (PEM)")
    add("--json", action="store_true", help="for scripts; with --watch one document in a line")
    add("--watch", action="store_true", help="look again and again, until Ctrl-C")
    add(
        "--seconds",
        metavar="SECONDS",
        type=_seconds,
        default=1.0,
        help="between two looks, over which rates are taken (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 0 if all that was asked answers and the edge is ready, 1 if not."""
    if problem := _problem(arguments):
        print(f"isthmus status: {problem}", file=sys.stderr)
        return 2
    key = arguments.key if arguments.key is not None else os.environ.get("ISTHMUS_API_KEY", "")
    url = arguments.url.rstrip("/")
    sources = Sources(url, arguments.metrics, arguments.grpc, key, arguments.ca)
    try:
        return asyncio.run(_run(sources, arguments))
    except KeyboardInterrupt:
        return 0 if arguments.watch else 130


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.5 to 3600")
    return value


def _problem(arguments: argparse.Namespace) -> str:
    """What is wrong with the options; "" for nothing."""
    if not arguments.url.startswith(("http://", "https://")):
        return f"--url: {arguments.url} is not like http://127.0.0.1:8000"
    for option in ("metrics", "grpc"):
        for address in getattr(arguments, option):
            if not is_host_and_port(address, lowest=1):
                return f"--{option}: {address} is not HOST:PORT"
    if arguments.ca is not None and not arguments.ca.is_file():
        return f"--ca: no such file: {arguments.ca}"
    return ""


async def _run(sources: Sources, arguments: argparse.Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    code = 1
    with ExitStack() as stack:
        live = None
        if arguments.watch and not arguments.json:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        async for found in _looks(sources, arguments):
            code = 0 if found.ready else 1
            if arguments.json:
                print(msgspec.json.encode(found).decode(), flush=True)
            elif live is not None:
                live.update(view(found), refresh=True)
            else:
                console.print(view(found))
    return code


async def _looks(sources: Sources, arguments: argparse.Namespace) -> AsyncIterator[Status]:
    """One state, or one after another; the first is made of two looks, too."""
    before: Look | None = None
    while True:
        seen = await look(sources)
        if before is not None or not seen.readiness:
            yield status(sources.url, seen, before)
            if not arguments.watch:
                return
        before = seen
        await asyncio.sleep(arguments.seconds)


def view(found: Status) -> RenderableType:
    """The state as tables."""
    is_up = found.readiness == READY
    head = Text.assemble(
        ("● ", "green" if is_up else "red"),
        (found.url, "bold"),
        f"  {found.readiness or 'no answer'}",
    )
    parts: list[RenderableType] = [head]
    notes = [f"{name}: {problem}" for name, problem in found.problems.items()] + found.errors
    parts += [Text(f"! {note}", style="yellow") for note in notes]
    if (rates := found.rates) is not None:
        parts += [
            "",
            f"ended in {rates.seconds:.1f} s: {rates.requests:.1f} requests/s, "
            f"{rates.errors:.1f} errors/s, tokens {rates.input_tokens:.0f}/s in, "
            f"{rates.output_tokens:.0f}/s out",
        ]
    for rows in (_models(found), _replicas(found), _processes(found.processes)):
        if rows is not None:
            parts += ["", rows]
    return Group(*parts)


def _table(texts: str, numbers: str, rows: Sequence[Sequence[str]]) -> Table | None:
    """A table; the headings of columns with texts and with numbers are words. None without rows."""
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in texts.split():
        table.add_column(heading, overflow="fold")
    for heading in numbers.split():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _models(found: Status) -> Table | None:
    return _table(
        "model kind state",
        "running waiting KV-cache",
        [
            (
                each.model,
                each.kind or "-",
                {True: "ready", False: "not ready", None: "-"}[each.ready],
                _number(each.running),
                _number(each.waiting),
                "-" if each.kv_cache_usage is None else f"{each.kv_cache_usage:.0%}",
            )
            for each in found.models
        ],
    )


def _replicas(found: Status) -> Table | None:
    return _table(
        "upstream replica state",
        "calls",
        [
            (
                each.upstream,
                each.replica,
                "not serving" if not each.serving else "resting" if each.resting else "serving",
                str(each.calls),
            )
            for each in found.replicas
        ],
    )


def _processes(processes: Sequence[ProcessStatus]) -> Table | None:
    return _table(
        "process at",
        "running clients queue sessions held/MiB RSS/MiB",
        [
            (
                each.process or each.program,
                each.source.rpartition("/")[2],
                _number(each.requests_running),
                _number(each.connections),
                _number(each.queue_depth),
                _number(each.sessions),
                f"{each.memory_used_bytes // _MIB}/{each.memory_limit_bytes // _MIB}",
                str(each.resident_bytes // _MIB),
            )
            for each in processes
        ],
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
