"""Random faults by a seeded schedule.

The schedule has rounds. Faults begin every few seconds for CHAOS_SECONDS. When all have ended,
nothing happens for QUIET_SECONDS; then one service is stopped cleanly and starts again, and no
request may fail.

`edge-a` is never restarted, and `service-a` only in the first third of the time, so that the memory
of an edge and of a service is observed for long.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from bench.soak.ledger import Death
from bench.soak.stack import EDGES, SERVICES, Stack
from keys import revoke_key

CHAOS_SECONDS: Final = 30.0
# Seconds without a fault before a clean restart.
QUIET_SECONDS: Final = 10.0
# Shortest and longest time between two faults, in seconds.
_PAUSES: Final = (2.0, 5.0)
# Seconds of a SIGSTOP, and of a revoked key.
_STOPPED_SECONDS: Final = 3.0
_REVOKED_SECONDS: Final = 3.0
# Seconds after which a process has read a changed keys file, and after which edges use a service
# that has started.
KEY_SECONDS: Final = 1.5
_NOTICE_SECONDS: Final = 2.0
# Seconds in which a program must come back.
_RESTART_SECONDS: Final = 30.0
# Seconds in which an edge or a service must close a connection that sends no request; the edge's
# head_seconds is 10.
_CLOSE_SECONDS: Final = 15.0
# Seconds before a SIGKILL in which an output may not have left the process.
_UNSENT_SECONDS: Final = 0.1
_GARBAGE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\x00: b\r\n\r\n",
)


@dataclass
class Window:
    """A fault, and the time in which it may explain a failure.

    Attributes:
        kind: A name of the table in `Faults`, or "clean stop".
        target: The program that it hits, or "second key".
        begin, end: Seconds of time.monotonic().
    """

    kind: str
    target: str
    begin: float
    end: float = math.inf


class Faults:
    """Applies faults to a stack.

    Args:
        stack: The programs.
        chance: The source of all choices.
        slow_reader: Sends a request and reads its answer slowly.

    Attributes:
        windows: All faults, in the order in which they began.
        deaths: Each SIGKILL of a service.
        notes: What went wrong beside requests.
    """

    def __init__(
        self, stack: Stack, chance: random.Random, slow_reader: Callable[[str], Awaitable[None]]
    ) -> None:
        self._stack = stack
        self._chance = chance
        self._slow_reader = slow_reader
        self._locks = {name: asyncio.Lock() for name in stack.children}
        self._spares_first = False
        self.windows: list[Window] = []
        self.deaths: list[Death] = []
        self.notes: list[str] = []
        self._weights: dict[Callable[[], Awaitable[None]], int] = {
            self._kill: 3,
            self._stop: 2,
            self._pause: 3,
            self._restart_edge: 2,
            self._read_slowly: 3,
            self._send_garbage: 4,
            self._never_end_a_head: 2,
            self._revoke: 2,
        }

    async def run(self, seconds: float) -> None:
        """Runs rounds until the time is over, and waits for the last fault to end."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            self._spares_first = time.monotonic() - begin > seconds / 3
            chaos_end = min(time.monotonic() + CHAOS_SECONDS, begin + seconds)
            async with asyncio.TaskGroup() as group:
                while time.monotonic() < chaos_end:
                    await asyncio.sleep(self._chance.uniform(*_PAUSES))
                    fault = self._chance.choices(list(self._weights), [*self._weights.values()])[0]
                    group.create_task(self._apply(fault))
            if time.monotonic() - begin >= seconds:
                return
            await asyncio.sleep(QUIET_SECONDS + 0.5)
            await self._stop()

    async def _apply(self, fault: Callable[[], Awaitable[None]]) -> None:
        try:
            await fault()
        except (OSError, TimeoutError) as error:
            self.notes.append(f"{fault.__name__.strip('_')}: {error!r}")

    def _open(self, kind: str, target: str) -> Window:
        window = Window(kind, target, time.monotonic())
        self.windows.append(window)
        return window

    def _service(self) -> str:
        return SERVICES[1] if self._spares_first else self._chance.choice(SERVICES)

    async def _kill(self) -> None:
        await self._end(self._service(), signal.SIGKILL, "kill")

    async def _stop(self) -> None:
        await self._end(self._service(), signal.SIGTERM, "clean stop")

    async def _restart_edge(self) -> None:
        await self._end(EDGES[1], signal.SIGTERM, "edge restart")

    async def _end(self, name: str, number: signal.Signals, kind: str) -> None:
        """Ends a program, and waits until the supervisor has started it again."""
        child = self._stack.children[name]
        async with self._locks[name]:
            pid = child.pid
            if pid is None:
                return
            window = self._open(kind, name)
            os.kill(pid, number)
            if number == signal.SIGKILL:
                self.deaths.append(Death(pid, window.begin, self._unsent_since(window.begin)))
            try:
                async with asyncio.timeout(_RESTART_SECONDS):
                    while child.pid in (None, pid) or not child.ready.is_set():  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            except TimeoutError:
                self.notes.append(f"{name} is not back {_RESTART_SECONDS:g} s after {number.name}")
            window.end = time.monotonic() + _NOTICE_SECONDS
            await asyncio.sleep(_NOTICE_SECONDS)

    def _unsent_since(self, death: float) -> float:
        """The time from which outputs may be unread: an edge that is paused reads nothing."""
        paused = [
            window.begin
            for window in self.windows
            if window.kind == "pause" and window.target in EDGES and window.end > death
        ]
        return min([death - _UNSENT_SECONDS, *paused])

    async def _pause(self) -> None:
        name = self._chance.choice((*SERVICES, *EDGES))
        async with self._locks[name]:
            pid = self._stack.children[name].pid
            if pid is None:
                return
            window = self._open("pause", name)
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(_STOPPED_SECONDS)
            finally:
                os.kill(pid, signal.SIGCONT)
                window.end = time.monotonic() + _NOTICE_SECONDS
            await asyncio.sleep(_NOTICE_SECONDS)

    async def _read_slowly(self) -> None:
        window = self._open("slow reader", EDGES[0])
        await self._slow_reader(EDGES[0])
        window.end = time.monotonic()

    async def _send_garbage(self) -> None:
        name = self._chance.choice((*SERVICES, *EDGES))
        data = self._chance.choice((*_GARBAGE, self._chance.randbytes(300) + b"\r\n\r\n"))
        window = self._open("garbage", name)
        await self._expect_close(name, [data])
        window.end = time.monotonic()

    async def _never_end_a_head(self) -> None:
        name = self._chance.choice(EDGES)
        window = self._open("endless head", name)
        lines = (f"x-{number}: soak\r\n".encode() for number in range(100))
        await self._expect_close(name, [b"GET /v1/models HTTP/1.1\r\n", *lines])
        window.end = time.monotonic()

    async def _expect_close(self, name: str, pieces: list[bytes]) -> None:
        """Sends bytes, one piece every 0.2 s, and waits until the connection is closed.

        Notes a connection that is open for too long, unless the program has ended meanwhile.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._stack.ports()[name])
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                reading = asyncio.create_task(reader.read())
                with suppress(ConnectionError):
                    for piece in pieces:
                        writer.write(piece)
                        await asyncio.wait({reading}, timeout=0.2)
                        if reading.done():
                            break
                    await reading
        except TimeoutError:
            if not self._hit(name, _CLOSE_SECONDS):
                self.notes.append(f"{name}: open {_CLOSE_SECONDS:g} s after {pieces[0][:40]!r}")
        finally:
            writer.close()

    def _hit(self, name: str, seconds: float) -> bool:
        """Whether a program was stopped or paused in the last seconds."""
        since = time.monotonic() - seconds
        kinds = ("kill", "clean stop", "pause", "edge restart")
        return any(w.target == name and w.kind in kinds and w.end > since for w in self.windows)

    async def _revoke(self) -> None:
        path = self._stack.keys_file
        if any(w.kind == "revoke" and w.end > time.monotonic() for w in self.windows):
            return
        before = path.read_text(encoding="utf-8")
        window = self._open("revoke", "second key")
        revoke_key(path, self._stack.second_id)
        await asyncio.sleep(_REVOKED_SECONDS)
        window.end = time.monotonic() + KEY_SECONDS
        replacement = path.with_suffix(".new")
        replacement.write_text(json.dumps(json.loads(before)), encoding="utf-8")
        replacement.chmod(0o600)
        replacement.replace(path)
        await asyncio.sleep(KEY_SECONDS)
