"""Child processes of the benchmark: started with a log, waited for, and always stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
STOP_SECONDS: Final = 8.0
_LOG_TAIL_BYTES: Final = 2000


class StartError(Exception):
    """A process did not come up; the message holds the end of its log."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command while the context is open.

    Args:
        command: What to run, in the repository's root.
        log: Where its output goes.
        environment: Added to this process's own.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_answer(
    process: subprocess.Popen[bytes], log: Path, port: int, path: str, limit_seconds: float = 30.0
) -> float:
    """Seconds until GET `path` answers 200.

    Raises:
        StartError: The process ended, or did not answer in time.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < limit_seconds:
        _check(process, log)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return time.perf_counter() - began
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise StartError(f"no answer on {path} within {limit_seconds:.0f} s\n{_tail(log)}")


def wait_for_port(
    process: subprocess.Popen[bytes], log: Path, port: int, limit_seconds: float = 30.0
) -> None:
    """Returns when somebody listens on the port.

    Raises:
        StartError: The process ended, or did not listen in time.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < limit_seconds:
        _check(process, log)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise StartError(f"nobody listens within {limit_seconds:.0f} s\n{_tail(log)}")


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise StartError(f"ended with {process.returncode}\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
