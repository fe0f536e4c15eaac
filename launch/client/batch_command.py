"""`isthmus batch`: the requests of a file, in OpenAI's batch format, over gRPC.

Each line of the input is a request, and each line of the output the response to one:

  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
  {"id": "batch_req_...", "custom_id": "1", "response": {"status_code": 200, "request_id": "...",
   "body": {...}}, "error": null}

The bodies are translated as the edge does it, so they have the same parameters and errors.
Responses are written in the order in which they end. A run that was interrupted goes on where it
stopped: what the output has is not sent again, except requests that failed for lack of room or
time.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from launch.client import services
from launch.client.batch_request import BatchCaller, Response
from launch.edges import positive
from launch.failure import CommandError

# A status after which the same request may succeed in a moment, and in another run.
_NO_ROOM: Final = frozenset({429, 503})
_PASSING: Final = _NO_ROOM | {500, 502, 504}
# The beginning of each line of the output.
_BEGINNING: Final = b'{"id":"batch_req_'
# Seconds between two tries; doubled up to the longest.
_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 30.0


class Line(msgspec.Struct):
    """A line of the input."""

    custom_id: str
    url: str
    body: Raw
    method: Literal["POST"] = "POST"


class _Told(msgspec.Struct):
    status_code: int


class _Done(msgspec.Struct):
    """The members of an output line that decide whether its request is sent again."""

    custom_id: str
    response: _Told | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus batch`."""
    add = parser.add_argument
    add("input", type=Path, metavar="IN.jsonl", help="one request a line")
    add("output", type=Path, metavar="OUT.jsonl", help="one response a line; added to if it exists")
    add(
        "--concurrency",
        type=positive,
        default=16,
        metavar="N",
        help="requests at once (default: %(default)s)",
    )
    add(
        "--priority",
        type=int,
        default=100,
        metavar="N",
        help="lower runs sooner, other requests have 0; without effect unless the model's "
        "scheduling_policy is priority (default: %(default)s)",
    )
    add(
        "--retries",
        type=int,
        default=10,
        metavar="N",
        help="of a request that finds no room (default: %(default)s)",
    )
    services.add_arguments(parser, model=False)


def run(arguments: argparse.Namespace) -> int:
    """Sends the requests; returns 1 if one has failed."""
    lines = _read(arguments.input)
    done = _resume(arguments.output)
    waiting = [line for line in lines if line.custom_id not in done]
    if skipped := len(lines) - len(waiting):
        print(f"{skipped} of {len(lines)} requests are done already.", file=sys.stderr)
    failed = _run(waiting, len(lines), arguments)
    if failed:
        print(f"{failed} requests failed; see their lines in {arguments.output}.", file=sys.stderr)
    return 1 if failed else 0


def _read(path: Path) -> list[Line]:
    decoder = msgspec.json.Decoder(Line)
    lines: dict[str, Line] = {}
    try:
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            if not text.strip():
                continue
            line = decoder.decode(text)
            if line.custom_id in lines:
                raise CommandError(
                    f"{path}:{number}: the custom_id {line.custom_id!r} is used twice.", 2
                )
            lines[line.custom_id] = line
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.", 2) from error
    except msgspec.DecodeError as error:
        raise CommandError(f"{path}:{number}: {error}.", 2) from error
    return list(lines.values())


def _resume(path: Path) -> set[str]:
    """The ids that the output has an answer for; lines to be written again are removed from it.

    Raises:
        CommandError: The file has something else than responses, which would be lost.
    """
    decoder = msgspec.json.Decoder(_Done)
    kept: dict[str, bytes] = {}
    try:
        text = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if not line.endswith(b"\n") and line.startswith(_BEGINNING[: len(line)]):
                break  # An interruption has cut the last line.
            try:
                done = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise CommandError(
                    f"{path}:{number}: no response of a batch. Name a file of responses, to which "
                    "more are added, or a new one.",
                    2,
                ) from error
            if done.response and done.response.status_code not in _PASSING:
                kept[done.custom_id] = line
        if b"".join(kept.values()) != text:
            replacement = path.with_name(path.name + ".part")
            replacement.write_bytes(b"".join(kept.values()))
            replacement.replace(path)
        path.touch()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.", 2) from error
    return set(kept)


def _run(waiting: list[Line], total: int, arguments: argparse.Namespace) -> int:
    """Sends all; returns how many have failed."""
    failed = 0
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with (
        services.services(arguments) as found,
        arguments.output.open("ab") as output,
        Progress(*columns, *times, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(arguments.concurrency) as pool,
    ):
        task = progress.add_task("", total=total, completed=total - len(waiting))
        caller, stopped = BatchCaller(found, arguments.priority), threading.Event()
        answers = {
            pool.submit(_answer, caller, line, arguments.retries, stopped): line for line in waiting
        }
        try:
            for future in as_completed(answers):
                response = future.result()
                failed += response.status_code != 200
                output.write(_rendered(answers.pop(future), response))
                output.flush()
                progress.advance(task)
        except BaseException:
            stopped.set()
            caller.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _answer(caller: BatchCaller, line: Line, retries: int, stopped: threading.Event) -> Response:
    delay = _FIRST_DELAY
    while True:
        response = caller.call(line.url, bytes(line.body))
        retries -= 1
        if response.status_code not in _NO_ROOM or retries < 0 or stopped.is_set():
            return response
        stopped.wait(max(delay, (response.retry_after_ms or 0) / 1000))
        delay = min(2 * delay, _LONGEST_DELAY)


def _rendered(line: Line, response: Response) -> bytes:
    document: dict[str, Any] = {
        "id": f"batch_req_{os.urandom(12).hex()}",
        "custom_id": line.custom_id,
        "response": {
            "status_code": response.status_code,
            "request_id": response.request_id,
            "body": Raw(response.body),
        },
        "error": None,
    }
    return msgspec.json.encode(document) + b"\n"
