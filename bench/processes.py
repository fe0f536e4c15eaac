"""Starts the measured programs in process groups of their own, and stops whole groups."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from launch import parent_death

ROOT: Final = Path(__file__).parents[1]
LOGS: Final = ROOT / "build" / "bench"

# Variables of the benchmark's environment that programs do not get, beside those of proxies.
_DROPPED: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
# Seconds between two looks whether a program is ready or its group has ended.
_POLL_SECONDS: Final = 0.05
# Seconds that a group may take to end after SIGTERM, and after SIGKILL.
_TERM_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 2.0
# Bytes of the log's end that an error shows.
_LOG_TAIL_BYTES: Final = 2000


class ProgramError(Exception):
    """A program cannot be installed or does not start."""


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """Returns the first of `count` consecutive TCP ports of 127.0.0.1 that are free now."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def random_key() -> str:
    """Returns an API key for one run. Peers check keys because the measured Isthmus does."""
    return f"sk-{secrets.token_urlsafe(32)}"


def environment(**variables: str) -> dict[str, str]:
    """Returns this process's environment, offline, without proxies and import paths, with
    `variables` added.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.lower().endswith("_proxy")
    }
    return {**kept, **_QUIET, **variables}


class Program:
    """A started program, which leads a process group of its own.

    Attributes:
        pid: Its process id, which is also that of the group.
        began: When it was started: seconds of time.monotonic().
        log: The file that receives its output.
    """

    def __init__(self, name: str, command: Sequence[str], variables: dict[str, str]) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        self._name = name
        # The kernel kills the program when the thread that starts it ends, so that no program
        # outlives a killed benchmark.
        wrapper = (sys.executable, "-P", parent_death.__file__, str(os.getpid()))
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                (*wrapper, *command),
                cwd=LOGS,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_until_ok(
        self,
        url: str,
        seconds: float,
        key: str,
        body: bytes | None = None,
        contains: str = "",
    ) -> None:
        """Repeats a request until its response has status 200 and contains a text.

        Args:
            url: Fetched with POST if there is a body, with GET otherwise.
            seconds: The longest wait.
            key: API key.
            body: JSON to post.
            contains: The text that the response must contain.

        Raises:
            ProgramError: The program has ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(url, body, headers)
        # Loopback needs no proxy, even if the environment has one.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        last = "no response"
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                # A paced source streams slowly, so one response may take all the time that is left.
                left = max(_POLL_SECONDS, deadline - time.monotonic())
                with opener.open(request, timeout=left) as response:
                    last = ""
                    for line in response:
                        last += line.decode(errors="replace")
                        if contains in last:
                            return
            except urllib.error.HTTPError as error:
                last = f"{error.code}: {error.read(500)!r}"
            except OSError as error:
                last = str(error)
            time.sleep(_POLL_SECONDS)
        self._fail(f"{url} is not ready within {seconds:g} s; last: {last[:500]}")

    def wait_until_chatting(self, url: str, model: str, key: str, seconds: float) -> float:
        """Requests a streamed chat until its first chunk arrives, then closes the connection.

        Returns:
            Seconds since the program's start.

        Raises:
            ProgramError: The program has ended, or the time is over.
        """
        messages = [{"role": "user", "content": "Ready?"}]
        request = {"model": model, "stream": True, "messages": messages}
        self.wait_until_ok(
            f"{url}/v1/chat/completions",
            seconds,
            key,
            body=json.dumps(request).encode(),
            contains='"delta"',
        )
        return time.monotonic() - self.began

    def wait_until_embedding(self, url: str, model: str, key: str, seconds: float) -> float:
        """Requests a vector until it arrives; takes and returns what `wait_until_chatting` does."""
        request = json.dumps({"model": model, "input": "Ready?"}).encode()
        endpoint = f"{url}/v1/embeddings"
        self.wait_until_ok(endpoint, seconds, key, body=request, contains='"embedding"')
        return time.monotonic() - self.began

    def wait_until_listening(self, port: int, seconds: float) -> None:
        """Waits until a port of 127.0.0.1 accepts connections.

        Raises:
            ProgramError: The program has ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(_POLL_SECONDS)
        self._fail(f"does not listen on port {port} within {seconds:g} s")

    def stop(self) -> None:
        """Ends the group: SIGTERM, then SIGKILL for processes that are left."""
        self._signal(signal.SIGTERM)
        self._wait_for_group(_TERM_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._wait_for_group(_KILL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _wait_for_group(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._process.poll()
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(_POLL_SECONDS)

    def _fail(self, what: str) -> None:
        code = self._process.poll()
        ended = "" if code is None else f" (it ended with {code})"
        tail = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        raise ProgramError(f"{self._name}{ended}: {what}\n{self.log}:\n{tail}")


@contextmanager
def started(name: str, command: Sequence[str], **variables: str) -> Iterator[Program]:
    """Runs a program in build/bench, and stops its whole group at the end.

    Args:
        name: The output goes to build/bench/NAME.log.
        command: Program and arguments.
        variables: Variables that its environment has beside those of `environment`.
    """
    program = Program(name, command, variables)
    try:
        yield program
    finally:
        program.stop()
