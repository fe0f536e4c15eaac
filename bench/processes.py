"""Programs that are measured: started in groups of their own, waited for, and stopped wholly."""

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

ROOT: Final = Path(__file__).parents[1]
LOGS: Final = ROOT / "build" / "bench"

# What no program must see: proxies and import paths of whoever runs the benchmark.
_DROPPED: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
_POLL_SECONDS: Final = 0.05
_TERM_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 2.0
_LOG_TAIL_BYTES: Final = 2000


class ProgramError(Exception):
    """A program cannot be installed or does not start."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def random_key() -> str:
    """An API key for one run: peers check keys, for Isthmus does so too when it is measured."""
    return f"sk-{secrets.token_urlsafe(32)}"


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without proxies and import paths, offline, plus `variables`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.lower().endswith("_proxy")
    }
    return {**kept, **_QUIET, **variables}


class Program:
    """A started program; its pid leads a process group of its own.

    Attributes:
        pid: Of the program.
        began: When it was started, on time.monotonic's clock, in seconds.
        log: What it prints.
    """

    def __init__(self, name: str, command: Sequence[str], variables: dict[str, str]) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        self._name = name
        # The guard ends it when the thread that starts it does, so that a killed benchmark
        # leaves nothing behind.
        guard = (sys.executable, "-P", str(ROOT / "launch" / "guard.py"), str(os.getpid()))
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                (*guard, *command),
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
        """Asks until a URL answers 200 with `contains` in it.

        Args:
            url: Fetched with GET, or POST where there is a body.
            seconds: At most so long.
            key: API key.
            body: JSON to post.
            contains: What the answer must hold.

        Raises:
            ProgramError: The program has ended, or time is up.
        """
        deadline = time.monotonic() + seconds
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(url, body, headers)
        # No proxy, whatever the environment says: this is loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        said = "no answer"
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                # A paced answer takes as long as it takes.
                left = max(_POLL_SECONDS, deadline - time.monotonic())
                with opener.open(request, timeout=left) as answer:
                    said = ""
                    for line in answer:
                        said += line.decode(errors="replace")
                        if contains in said:
                            return
            except urllib.error.HTTPError as error:
                said = f"{error.code}: {error.read(500)!r}"
            except OSError as error:
                said = str(error)
            time.sleep(_POLL_SECONDS)
        self._fail(f"{url} is not ready within {seconds:g} s; last: {said[:500]}")

    def wait_until_chatting(self, url: str, model: str, key: str, seconds: float) -> float:
        """Asks until /v1/chat/completions streams the beginning of an answer, then hangs up.

        Returns:
            Seconds since the program's start.

        Raises:
            ProgramError: The program has ended, or time is up.
        """
        messages = [{"role": "user", "content": "Ready?"}]
        question = {"model": model, "stream": True, "messages": messages}
        self.wait_until_ok(
            f"{url}/v1/chat/completions",
            seconds,
            key,
            body=json.dumps(question).encode(),
            contains='"delta"',
        )
        return time.monotonic() - self.began

    def wait_until_listening(self, port: int, seconds: float) -> None:
        """Waits until somebody accepts connections on a port of 127.0.0.1.

        Raises:
            ProgramError: The program has ended, or time is up.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(_POLL_SECONDS)
        self._fail(f"does not listen on port {port} within {seconds:g} s")

    def stop(self) -> None:
        """Asks the group to end, kills what has not, and waits for the program."""
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
    """Runs a program, logging to build/bench/NAME.log, and stops its whole group at the end.

    Args:
        name: Of the log.
        command: Program and arguments; it runs in build/bench.
        variables: Of its environment, besides this process's.
    """
    program = Program(name, command, variables)
    try:
        yield program
    finally:
        program.stop()
