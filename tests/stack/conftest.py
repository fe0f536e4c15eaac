"""The product as a user starts it: `isthmus up` with the real default models."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from keys import create_key
from tests.collector import Collector, collecting

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "platform-names.toml"
BIN = Path(sys.executable).parent
# Longest start without cached models; with them it takes a quarter of this.
START_SECONDS = 600.0
STOP_SECONDS = 60.0


def free_port(count: int = 1) -> int:
    """Returns the first of `count` consecutive ports that are all free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits until the condition holds; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"within {seconds:.0f} s not: {what}")
        time.sleep(0.25)  # Each look takes processor time, which a start needs.


@dataclass(frozen=True)
class Up:
    """A running `isthmus up`."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """True if /ready reports ready; fails the test if the stack has ended."""
        if self.process.poll() is not None:
            pytest.fail(f"isthmus up ended with {self.process.returncode}:\n{self.output()}")
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as response:
                return bool(json.load(response)["status"] == "ready")
        except (OSError, urllib.error.HTTPError):
            return False

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def processes(self) -> list[psutil.Process]:
        """All child processes of the supervisor, recursively."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def inference(self, model: str) -> psutil.Process:
        """The inference process of a model."""
        for process in psutil.Process(self.process.pid).children():
            line = process.cmdline()
            if "inference" in line and model in line:
                return process
        raise LookupError(model)

    def stop(self) -> int:
        """Sends SIGINT, as Ctrl-C does; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


def start_up(*arguments: str) -> Up:
    """Starts `isthmus up` in its own session, so that signals to the tests do not reach it."""
    port, grpc_port = free_port(), free_port(3)
    log = Path(tempfile.mkstemp(prefix="isthmus-up-", suffix=".log")[1])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "isthmus", "up", "--port", str(port), "--grpc-port", str(grpc_port), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ
            | {"PATH": f"{BIN}:{os.environ['PATH']}", "OTEL_BSP_SCHEDULE_DELAY": "100"},
            start_new_session=True,
        )
    return Up(process, port, grpc_port, log)


def gone(process: psutil.Process) -> bool:
    """True if the process has ended; a zombie counts as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end(up: Up) -> None:
    """Kills the supervisor and its children if they still run."""
    if up.process.poll() is None:
        left = up.processes()
        up.process.kill()
        up.process.wait()
        for process in left:
            if not gone(process):
                process.kill()


class OneStack:
    """Runs one stack with real models at a time: two would share the cores, for twice as long."""

    def __init__(self) -> None:
        self._arguments: tuple[str, ...] = ()
        self._up: Up | None = None

    def running(self, *arguments: str) -> Up:
        """The stack with these arguments, which is started unless it runs."""
        if self._up is None or self._arguments != arguments or self._up.process.poll() is not None:
            self.end()
            self._arguments, self._up = arguments, start_up(*arguments)
            wait_until(self._up.ready, START_SECONDS, f"ready\n{self._up.output()}")
        return self._up

    def end(self) -> None:
        if self._up is not None:
            end(self._up)
            self._up = None


@pytest.fixture(scope="session")
def one_stack() -> Iterator[OneStack]:
    stack = OneStack()
    yield stack
    stack.end()


@pytest.fixture(scope="session")
def example_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A keys file, and the one key in it."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    return keys, create_key(keys, "platforms")[1]


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Gets the spans of the stack of `up`."""
    with collecting() as running:
        yield running


@pytest.fixture
def up(one_stack: OneStack, collector: Collector) -> Up:
    """The stack of `isthmus up` without a configuration; its traces cost no further start."""
    return one_stack.running("--otlp-endpoint", f"http://127.0.0.1:{collector.port}")


@pytest.fixture
def example_up(one_stack: OneStack, example_key: tuple[Path, str]) -> Up:
    """The stack of docs/examples/platform-names.toml, behind keys."""
    return one_stack.running("--config", str(EXAMPLE), "--keys", str(example_key[0]))


@pytest.fixture
def dying_up(up: Up) -> Up:
    """The same stack, for a test that ends it."""
    return up


@pytest.fixture
def dying_example_up(example_up: Up) -> Up:
    """The same stack, for a test that ends it."""
    return example_up


def _turn(item: pytest.Item) -> int:
    """Orders tests so that each stack is started once and its last test ends it."""
    names = getattr(item, "fixturenames", ())
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "dying_example_up" in names:
        return 3
    if "example_up" in names or parameters.get("platform") in ("b", "c"):
        return 2
    return int("dying_up" in names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = [i for i, item in enumerate(items) if item.path.is_relative_to(here)]
    for place, item in zip(places, sorted((items[i] for i in places), key=_turn), strict=True):
        items[place] = item
        if item.get_closest_marker("timeout") is None:
            # Any test may be the first of its stack, and waits for its start.
            item.add_marker(pytest.mark.timeout(START_SECONDS))


@pytest.fixture
def scripted_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts stacks with scripted engines, which are ready within two seconds."""
    started: list[Up] = []

    def start(**engine_args: Any) -> Up:
        config = tmp_path / "isthmus.toml"
        config.write_text(
            '[[models]]\nid = "scripted"\nengine = "scripted"\n'
            f"engine_args = {{ {', '.join(f'{k} = {v!r}' for k, v in engine_args.items())} }}\n"
        )
        running = start_up("--config", str(config))
        started.append(running)
        wait_until(running.ready, 60, "ready")
        return running

    yield start
    for running in started:
        end(running)
