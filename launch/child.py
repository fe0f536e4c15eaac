"""One supervised program: started, watched, restarted, and stopped with all that it started."""

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
"""Asks a child whether it serves; may raise, which means no."""

Line = Callable[[str, str], None]
"""Told (child's name, text)."""

_LAST_LINES: Final = 20
# After its leader has died, what a group has left to tidy up (shared memory) before it is killed.
_TIDY_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
# What our programs end with when their configuration is wrong: trying again cannot help.
_MISCONFIGURED: Final = 2


class CannotStartError(Exception):
    """A child ended again and again before it ever served."""

    def __init__(self, name: str, exits: int, last_lines: Sequence[str]) -> None:
        times = "once" if exits == 1 else f"{exits} times"
        super().__init__(f"{name} ended {times} before it was ready")
        self.last_lines = tuple(last_lines)


@dataclass(frozen=True, slots=True)
class Timing:
    """How a child is watched and restarted.

    Attributes:
        first_delay_seconds: Before the first restart; doubles with each.
        max_delay_seconds: The longest delay.
        steady_seconds: After so long in health, the next delay is the first again.
        probe_seconds: Between two probes of a child that does not serve yet.
        ready_probe_seconds: Between two probes of one that does.
        max_failed_starts: Exits before ever being healthy until it is given up.
    """

    first_delay_seconds: float = 1.0
    max_delay_seconds: float = 30.0
    steady_seconds: float = 60.0
    probe_seconds: float = 0.5
    ready_probe_seconds: float = 5.0
    max_failed_starts: int = 5


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs.

    Attributes:
        name: For people.
        command: Program and arguments.
        environment: Its whole environment.
        probe: Whether it serves.
        stop_first: Stopped before the others: what takes requests in.
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
        ready: Set while it serves.
        pid: Of its newest process, which leads a session and a process group of its own.
    """

    program: Program
    timing: Timing
    on_line: Line
    on_state: Line
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    _process: asyncio.subprocess.Process | None = None
    _killed: bool = False
    _was_ready: bool = False
    _ready_since: float = 0.0

    async def run(self) -> None:
        """Keeps the program running until `stop`.

        Raises:
            CannotStartError: It never became ready.
        """
        failed_starts = 0
        delay = self.timing.first_delay_seconds
        while not self._stopping.is_set():
            status, steady = await self._run_once()
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
        """Lets the program run on, but does not start it again."""
        self._stopping.set()

    def terminate(self) -> None:
        """Asks the program, and only it, to end; it is not started again."""
        self.retire()
        if self._process is not None and self._process.returncode is None:
            self.on_state(self.program.name, "stopping")
            self._process.terminate()

    def kill(self) -> None:
        """Ends the program and all that it started, now."""
        self.retire()
        self._killed = True
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    async def _run_once(self) -> tuple[int, bool]:
        """Runs the program until it ends: its status, and whether it was healthy for long."""
        reading, writing = os.pipe()
        try:
            # The pipe is ours, not asyncio's: wait() must not wait for grandchildren that hold it.
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "launch.parent_death",
                    str(os.getpid()),
                    *self.program.command,
                ),
                env=dict(self.program.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        self._process, self.pid = process, process.pid
        tasks = [asyncio.create_task(self._read(reading)), asyncio.create_task(self._watch())]
        self.on_state(self.program.name, "starting")
        try:
            # A stop that came while the process was being made did not see it.
            if self._killed:
                self.kill()
            elif self._stopping.is_set():
                self.terminate()
            code = await process.wait()
        finally:
            self.ready.clear()
            await end_group(process.pid)
            self.pid = None
            tasks[1].cancel()
            # Output ends with the group, unless a process has left it and keeps the pipe.
            await asyncio.wait(tasks, timeout=_TIDY_SECONDS)
            tasks[0].cancel()
        steady = self._ready_since > 0 and (
            time.monotonic() - self._ready_since >= self.timing.steady_seconds
        )
        self._ready_since = 0.0
        self.on_state(self.program.name, f"ended with {_meaning(code)}")
        return code, steady

    async def _read(self, descriptor: int) -> None:
        """Hands on the program's output, line by line."""
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
                    self._line(line)
            if rest:
                self._line(rest)
        finally:
            transport.close()

    def _line(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace").rpartition("\r")[2].rstrip()
        if text:
            self._last_lines.append(text)
            self.on_line(self.program.name, text)

    async def _watch(self) -> None:
        """Keeps `ready` true."""
        while True:
            try:
                serves = await self.program.probe()
            except Exception:
                # Nobody listens yet, or no more: whatever the reason, it does not serve.
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
    """Ends what a dead leader left behind: asked first, killed soon."""
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + _TIDY_SECONDS
    while _alive(group):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)


def _alive(group: int) -> bool:
    # Orphans that this process adopted stay in the group until somebody waits for them.
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


def _meaning(code: int) -> str:
    return f"status {code}" if code >= 0 else signal.Signals(-code).name
