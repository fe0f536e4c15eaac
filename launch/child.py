"""A supervised program: it is started, its health is probed, and it is restarted when it ends.

Each process leads a process group of its own. When it ends, the rest of its group is ended
before the program is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Probe = Callable[[], Awaitable[bool]]
"""Returns whether a child serves requests; an exception counts as False."""

OnText = Callable[[str, str], None]
"""Called with a child's name and one line of text."""

# Bytes of one line of output; a longer one is shown in pieces.
_MAX_LINE_BYTES: Final = 128 * 1024
# Lines of output that CannotStartError shows.
_LAST_LINES: Final = 20
# Seconds that a group has, after its leader has died, to release shared memory before SIGKILL.
_CLEAN_UP_SECONDS: Final = 2.0
# Seconds between two checks whether the group has ended.
_POLL_SECONDS: Final = 0.02
# Exit status of our programs when their configuration is wrong; a restart would not help.
_MISCONFIGURED: Final = 2


class CannotStartError(Exception):
    """A child was given up because it never became ready; the message ends with its last lines."""

    def __init__(self, name: str, exits: int, last_lines: Sequence[str]) -> None:
        times = "once" if exits == 1 else f"{exits} times"
        message = f"{name} ended {times} before it was ready. Its last lines:"
        super().__init__("\n".join([message, *last_lines]))
        self.last_lines = tuple(last_lines)


@dataclass(frozen=True, slots=True)
class Timing:
    """How often a child is probed and restarted.

    Each restart doubles the delay, from the first up to the longest one. A child that was ready for
    `steady_seconds` is restarted after the first delay. `ready_probe_seconds` is the time between
    two probes of a child that is ready. One that has never been ready is given up after
    `max_failed_starts` exits.
    """

    first_delay_seconds: float = 1.0
    max_delay_seconds: float = 30.0
    steady_seconds: float = 60.0
    probe_seconds: float = 0.5
    ready_probe_seconds: float = 5.0
    max_failed_starts: int = 5


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a child, with its arguments and its whole environment.

    `stop_first` is true for an edge: the others stop later, so that they can finish its requests.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    probe: Probe
    stop_first: bool = False


@dataclass
class Child:
    """A program and its restarts.

    Attributes:
        on_line, on_state: Called with each line of output, and each change of state ("ready").
        turn: Set once the program may be started for the first time.
        ready: Set while the probe succeeds.
        pid: The running process, which leads a session and a process group; None without one.
    """

    program: Program
    timing: Timing
    on_line: OnText
    on_state: OnText
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    _process: asyncio.subprocess.Process | None = None
    _killed: bool = False
    _was_ready: bool = False
    _ready_since: float = 0.0

    async def run(self) -> None:
        """Waits for its turn, runs the program, and restarts it when it ends, until it is stopped.

        Raises CannotStartError if it ended `max_failed_starts` times without ever being ready, or
        once with the status of a wrong configuration.
        """
        if not self.turn.is_set():
            self.on_state(self.program.name, "waiting until others have started")
            await self.turn.wait()
        failed_starts = 0
        delay = self.timing.first_delay_seconds
        while not self._stopping.is_set():
            try:
                status, steady = await self._run_once()
            except OSError as error:
                # Too many open files or processes, or no memory: that may pass.
                self.on_state(self.program.name, f"cannot be started: {error}")
                status, steady = 1, False
            if self._stopping.is_set():
                return
            if not self._was_ready:
                failed_starts += 1
                hopeless = status == _MISCONFIGURED
                if hopeless or failed_starts >= self.timing.max_failed_starts:
                    raise CannotStartError(self.program.name, failed_starts, self._last_lines)
            if steady:
                delay = self.timing.first_delay_seconds
            self.on_state(self.program.name, f"restarting in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(2 * delay, self.timing.max_delay_seconds)

    def retire(self) -> None:
        """Leaves the program running, but does not start it again once it ends."""
        self._stopping.set()
        self.turn.set()

    def terminate(self) -> None:
        """Sends SIGTERM to the program, not to its group; it is not started again."""
        self.retire()
        if self._process is not None and self._process.returncode is None:
            self.on_state(self.program.name, "stopping")
            self._process.terminate()

    def kill(self) -> None:
        """Sends SIGKILL to the program's group; it is not started again."""
        self.retire()
        self._killed = True
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    async def _run_once(self) -> tuple[int, bool]:
        """Runs the program; returns its status, and whether it was ready for `steady_seconds`."""
        reading, writing = os.pipe()
        try:
            # With asyncio's own pipe, process.wait() would also wait for grandchildren that hold
            # its other end.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "launch.parent_death", str(os.getpid())),
                *self.program.command,
                env=dict(self.program.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._process, self.pid = process, process.pid
        output = asyncio.create_task(self._read_output(reading))
        health = asyncio.create_task(self._watch_health())
        for task in (output, health):
            task.add_done_callback(self._task_ended)
        self.on_state(self.program.name, "starting")
        try:
            # A kill() or terminate() during create_subprocess_exec found no process to signal.
            if self._killed:
                self.kill()
            elif self._stopping.is_set():
                self.terminate()
            code = await process.wait()
        finally:
            self.ready.clear()
            await end_group(process.pid)
            self.pid = None
            health.cancel()
            # The output ends with the group, unless a process has left the group with the pipe.
            await asyncio.wait((output, health), timeout=_CLEAN_UP_SECONDS)
            output.cancel()
        ready_seconds = time.monotonic() - self._ready_since if self._ready_since else 0.0
        self._ready_since = 0.0
        cause = f"status {code}" if code >= 0 else signal.Signals(-code).name
        self.on_state(self.program.name, f"ended with {cause}")
        return code, ready_seconds >= self.timing.steady_seconds

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A child that cannot be read or probed any more is killed, and started again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.on_state(self.program.name, f"cannot be watched: {error!r}")
            if self.pid is not None:
                _signal_group(self.pid, signal.SIGKILL)

    async def _read_output(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        rest = b""
        try:
            while chunk := await reader.read(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take_line(line)
                if len(rest) > _MAX_LINE_BYTES:
                    self._take_line(rest)
                    rest = b""
            if rest:
                self._take_line(rest)
        finally:
            transport.close()

    def _take_line(self, raw: bytes) -> None:
        # A progress bar rewrites its line after each "\r"; only the last state is shown.
        text = raw.decode("utf-8", "replace").rpartition("\r")[2].rstrip()
        if text:
            self._last_lines.append(text)
            self.on_line(self.program.name, text)

    async def _watch_health(self) -> None:
        """Polls the probe, and sets or clears `ready` when its result changes."""
        while True:
            try:
                serves = await self.program.probe()
            except Exception:
                # Most often the port is not open (yet); for any other reason it does not serve.
                serves = False
            if serves and not self.ready.is_set():
                self._was_ready = True
                self._ready_since = self._ready_since or time.monotonic()
                self.ready.set()
                self.on_state(self.program.name, "ready")
            elif not serves and self.ready.is_set():
                self._ready_since = 0.0
                self.ready.clear()
                if not self._stopping.is_set():
                    self.on_state(self.program.name, "does not serve")
            timing = self.timing
            await asyncio.sleep(timing.ready_probe_seconds if serves else timing.probe_seconds)


async def end_group(group: int) -> None:
    """Ends the processes that a dead leader left in its group: SIGTERM, then SIGKILL."""
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + _CLEAN_UP_SECONDS
    while _alive(group):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)


def _alive(group: int) -> bool:
    # This process adopts orphans (adopt_orphans); ended ones stay in the group until waited for.
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is not None:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
