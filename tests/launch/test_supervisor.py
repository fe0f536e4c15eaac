"""The supervisor with small programs: restarts, delays, stops, and no processes left over."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.child import CannotStartError, Child, Program, Timing
from launch.supervisor import Supervisor

QUICK = Timing(
    first_delay_seconds=0.05, max_delay_seconds=0.2, probe_seconds=0.01, ready_probe_seconds=0.01
)

# The scripts of children are made of these parts. START notes "NAME start" in the file `events`;
# READY creates the file that the child's probe looks for.
START = """
import os, pathlib, signal, subprocess, sys, time
here = pathlib.Path(os.environ["HERE"]); name = os.environ["NAME"]
def write_pid(kind, pid):
    # A reader must not find the file before its content.
    new = here / f"{name}.{kind}.new"
    new.write_text(str(pid)); new.rename(here / f"{name}.{kind}")
def note(word):
    with (here / "events").open("a") as events: events.write(f"{name} {word}\\n")
note("start")
"""
READY = """
write_pid("ready", os.getpid())
"""
# Ends at SIGTERM, with status 0.
LEAVE = """
def leave(number, frame):
    note("stop"); (here / (name + ".ready")).unlink(); sys.exit(0)
signal.signal(signal.SIGTERM, leave)
"""
WAIT = """
while True: time.sleep(0.01)
"""
# Starts a process that ignores SIGTERM.
GRANDCHILD = """
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", stubborn])
write_pid("grandchild", grandchild.pid)
"""


@dataclass
class Stack:
    """A supervisor under test, with the output and the states that it reported."""

    here: Path
    programs: list[Program] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    ready_calls: int = 0
    supervisor: Supervisor | None = None

    def add(self, name: str, script: str, *, stop_first: bool = False) -> None:
        async def probe() -> bool:
            return (self.here / f"{name}.ready").exists()

        environment = {**os.environ, "HERE": str(self.here), "NAME": name}
        command = [sys.executable, "-c", START + script]
        self.programs.append(Program(name, command, environment, probe, stop_first))

    def run(
        self,
        drain_seconds: float = 30,
        closing_seconds: float = 30,
        starts_at_once: int | None = None,
    ) -> asyncio.Task[int]:
        def ready() -> None:
            self.ready_calls += 1

        self.supervisor = Supervisor(
            self.programs,
            drain_seconds=drain_seconds,
            closing_seconds=closing_seconds,
            on_line=lambda name, text: self.lines.append(f"{name} {text}"),
            on_state=lambda name, text: self.states.append(f"{name} {text}"),
            on_ready=ready,
            timing=QUICK,
            starts_at_once=starts_at_once,
        )
        return asyncio.create_task(self.supervisor.run())

    def events(self) -> list[str]:
        path = self.here / "events"
        return path.read_text().splitlines() if path.exists() else []

    def pid(self, name: str) -> int:
        return int((self.here / name).read_text())


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    # No process of a test may outlive it.
    for process in psutil.process_iter(["environ"]):
        environment = process.info["environ"] or {}
        if environment.get("HERE") == str(tmp_path) and process.pid != os.getpid():
            process.kill()
            pytest.fail(f"a process was left: {process}")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_programs_start_in_order_and_no_more_at_once_than_allowed(stack: Stack) -> None:
    # "b" takes the place of "a", which serves; "c" waits, because "b" does not.
    stack.add("a", LEAVE + READY + WAIT)
    stack.add("b", LEAVE + WAIT)
    stack.add("c", LEAVE + READY + WAIT)
    stack.add("edge", LEAVE + READY + WAIT, stop_first=True)
    task = stack.run(starts_at_once=1)
    await _until(lambda: {"b start", "edge start"} <= set(stack.events()))
    await asyncio.sleep(0.2)
    assert "c start" not in stack.events()
    assert "c waiting until others have started" in stack.states
    (stack.here / "b.ready").touch()
    await _until(lambda: "c start" in stack.events())
    await _until(lambda: stack.ready_calls == 1)
    stack.supervisor.interrupt()
    assert await task == 0


async def test_program_that_waits_for_its_turn_is_not_started_by_a_stop(stack: Stack) -> None:
    stack.add("a", WAIT)
    stack.add("b", LEAVE + READY + WAIT)
    task = stack.run(starts_at_once=1)
    await _until(lambda: "a start" in stack.events())
    stack.supervisor.interrupt()
    assert await task == 0
    assert "b start" not in stack.events()


async def test_on_ready_is_called_once_when_all_programs_serve(stack: Stack) -> None:
    stack.add("a", LEAVE + READY + WAIT)
    stack.add("b", LEAVE + WAIT)
    task = stack.run()
    await _until(lambda: "a ready" in stack.states)
    assert stack.ready_calls == 0
    (stack.here / "b.ready").touch()
    await _until(lambda: stack.ready_calls == 1)
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    assert await task == 0
    assert stack.ready_calls == 1


async def test_output_is_reported_line_by_line(stack: Stack) -> None:
    script = 'print("one\\ntwo", flush=True); print("e", file=sys.stderr); print("x" * 100000)'
    stack.add("a", LEAVE + script + READY + WAIT)
    task = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    await task
    assert stack.lines == ["a one", "a two", "a e", "a " + "x" * 100000] or stack.lines == [
        "a one",
        "a two",
        "a " + "x" * 100000,
        "a e",
    ]


async def test_a_crashed_child_is_restarted_and_the_others_keep_running(stack: Stack) -> None:
    stack.add("a", LEAVE + READY + WAIT)
    stack.add("b", LEAVE + READY + WAIT)
    task = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    crashed, other = stack.pid("a.ready"), stack.pid("b.ready")
    (stack.here / "a.ready").unlink()
    os.kill(crashed, signal.SIGKILL)
    await _until(lambda: (stack.here / "a.ready").exists() and stack.pid("a.ready") != crashed)
    assert stack.pid("b.ready") == other
    assert "a ended with SIGKILL" in stack.states
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    assert await task == 0
    assert stack.events().count("a start") == 2


async def test_child_is_restarted_although_the_system_refuses_a_process_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.add("a", LEAVE + READY + WAIT)
    run = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    start, refusals = asyncio.create_subprocess_exec, 2

    async def refuse(*command: str, **options: Any) -> asyncio.subprocess.Process:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    crashed = stack.pid("a.ready")
    (stack.here / "a.ready").unlink()
    os.kill(crashed, signal.SIGKILL)
    await _until(lambda: stack.states.count("a ready") == 2)
    assert sum("Too many open files" in state for state in stack.states) == 2
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    assert await run == 0


async def test_unforeseen_exception_ends_the_stack_with_its_reason(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(child: Child) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Child, "_run_once", broken)
    stack.add("a", LEAVE + READY + WAIT)
    with pytest.raises(RuntimeError, match="injected"):
        await stack.run()


async def test_child_whose_output_cannot_be_read_is_started_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failures = Child._take_line, 1

    def broken(child: Child, raw: bytes) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("injected")
        take(child, raw)

    monkeypatch.setattr(Child, "_take_line", broken)
    stack.add("a", LEAVE + 'print("hello", flush=True)' + READY + WAIT)
    run = stack.run()
    await _until(lambda: "a hello" in stack.lines)
    assert any("cannot be watched" in state for state in stack.states)
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    assert await run == 0


async def test_line_without_an_end_is_shown_in_pieces(stack: Stack) -> None:
    script = 'sys.stdout.write("x" * 24_000_000); sys.stdout.flush()'
    stack.add("a", LEAVE + script + READY + WAIT)
    run = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    pieces = [line.removeprefix("a ") for line in stack.lines]
    assert max(map(len, pieces)) <= 192 * 1024
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    assert await run == 0
    assert sum(len(line.removeprefix("a ")) for line in stack.lines) >= 24_000_000


async def test_restart_delays_double_up_to_the_bound(stack: Stack) -> None:
    # The child serves for a moment each time, so that it is never given up.
    stack.add("a", READY + "time.sleep(0.3); (here / 'a.ready').unlink(); sys.exit(3)")
    task = stack.run()
    assert stack.supervisor is not None

    def delays() -> list[str]:
        return [state for state in stack.states if "restarting" in state]

    await _until(lambda: len(delays()) >= 4)
    stack.supervisor.interrupt()
    await task
    seconds = (0.05, 0.1, 0.2, 0.2)
    assert delays()[:4] == [f"a restarting in {delay} s" for delay in seconds]


async def test_a_child_that_never_serves_ends_the_stack_with_its_last_lines(stack: Stack) -> None:
    stack.add("bad", "print('no such model', flush=True); sys.exit(1)")
    stack.add("good", LEAVE + READY + WAIT)
    with pytest.raises(CannotStartError) as caught:
        await stack.run()
    assert caught.value.last_lines[-1] == "no such model"
    assert stack.events().count("bad start") == 5
    assert "good stop" in stack.events()


async def test_a_misconfigured_child_is_not_restarted(stack: Stack) -> None:
    stack.add("bad", "print('no such member', flush=True); sys.exit(2)")
    with pytest.raises(CannotStartError) as caught:
        await stack.run()
    assert caught.value.last_lines == ("no such member",)
    assert stack.events() == ["bad start"]


async def test_a_program_with_stop_first_ends_before_the_others(stack: Stack) -> None:
    # After SIGTERM the edge runs until the file `idle` exists.
    edge = """
def drain(number, frame):
    note("drain")
    while not (here / "idle").exists(): time.sleep(0.01)
    note("stop"); sys.exit(0)
signal.signal(signal.SIGTERM, drain)
"""
    stack.add("model", LEAVE + READY + WAIT)
    stack.add("edge", edge + READY + WAIT, stop_first=True)
    task = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    await _until(lambda: "edge drain" in stack.events())
    (stack.here / "idle").touch()
    assert await task == 0
    assert stack.events()[-3:] == ["edge drain", "edge stop", "model stop"]


async def test_grandchildren_of_a_crashed_child_end_before_it_starts_again(stack: Stack) -> None:
    stack.add("a", LEAVE + GRANDCHILD + READY + WAIT)
    task = stack.run()
    await _until(lambda: stack.ready_calls == 1)
    first = stack.pid("a.grandchild")
    assert _running(first)
    (stack.here / "a.ready").unlink()
    os.kill(stack.pid("a.grandchild"), 0)
    assert stack.supervisor is not None
    leader = stack.supervisor.children[0].pid
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    await _until(lambda: stack.events().count("a start") == 2)
    assert not _running(first)
    await _until(lambda: (stack.here / "a.ready").exists())
    second = stack.pid("a.grandchild")
    stack.supervisor.interrupt()
    assert await task == 0
    assert not _running(second)


async def test_a_child_that_ignores_sigterm_is_killed_in_time(stack: Stack) -> None:
    stack.add("a", "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + GRANDCHILD + READY + WAIT)
    task = stack.run(drain_seconds=0.1, closing_seconds=0.2)
    await _until(lambda: stack.ready_calls == 1)
    assert stack.supervisor is not None
    began = time.monotonic()
    stack.supervisor.interrupt()
    assert await task == 1
    assert time.monotonic() - began < 10
    assert not _running(stack.pid("a.grandchild"))


async def test_a_second_interrupt_kills_all_children(stack: Stack) -> None:
    stack.add("a", "signal.signal(signal.SIGTERM, lambda *_: note('SIGTERM'))" + READY + WAIT)
    stack.add("b", LEAVE + READY + WAIT)
    task = stack.run(drain_seconds=600, closing_seconds=600)
    await _until(lambda: stack.ready_calls == 1)
    os.kill(os.getpid(), signal.SIGTERM)
    await _until(lambda: "a SIGTERM" in stack.events())
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(30):
        assert await task == 130


async def test_an_interrupt_during_the_start_ends_with_status_0(stack: Stack) -> None:
    stack.add("a", LEAVE + WAIT)
    task = stack.run()
    await _until(lambda: "a start" in stack.events())
    assert stack.supervisor is not None
    stack.supervisor.interrupt()
    async with asyncio.timeout(30):
        assert await task == 0
    assert stack.ready_calls == 0


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    program = f"""
import asyncio, os, sys
from launch.child import Program
from launch.supervisor import Supervisor
async def probe(): return False
quiet = lambda *_: None
command = [sys.executable, {str(child)!r}, {str(tmp_path / "pid")!r}]
programs = [Program("a", command, dict(os.environ), probe)]
supervisor = Supervisor(
    programs, drain_seconds=1, on_line=quiet, on_state=quiet, on_ready=quiet
)
asyncio.run(supervisor.run())
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        _wait(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
        pid = int((tmp_path / "pid").read_text())
        assert _running(pid)
    finally:
        process.kill()
        process.wait()
    _wait(lambda: not _running(pid))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
