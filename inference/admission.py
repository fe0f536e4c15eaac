"""Permits bound the work inside an engine; a short bounded queue holds the calls that wait.

An engine with too much concurrent work slows down for everybody and can run out of memory, so a
call needs a permit before it is rendered and tokenized, and holds it until its output has ended. A
permit has a cost in units: one for each choice of text, one for each MiB of vectors, one
for an image call.

Invariants
* The units of all permits held are at most `max_running`. A call that costs more than that is
  charged `max_running`, so it can run, alone.
* Permits are granted in order of arrival. A cheap call never overtakes an expensive one, which
  could otherwise wait forever.
* While calls wait, a new call waits behind them even if its own cost would fit.

| event                                   | then                                              |
|-----------------------------------------|---------------------------------------------------|
| arrival; room and an empty queue        | granted at once                                   |
| arrival; otherwise, room in the queue   | waits                                             |
| arrival; the queue is full              | refused: server_overloaded                        |
| permit returned, or a waiter leaves     | as many waiters as fit are granted, oldest first  |
| waits longer than the bound             | refused: queue_timeout                            |
| cancelled while waiting                 | leaves the queue; the engine never sees the call  |
| cancelled in the loop turn of its grant | the permit is returned                            |

A refusal tells when to try again: when the calls that wait now will have run, by the rate at which
the last permits were returned since calls wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import Final

from contract.failures import OVERLOADED
from inference.errors import InferenceError, overloaded

# Returned permits from which the rate is taken.
_RATE_SAMPLES: Final = 32
# Bounds of what a refusal tells a caller to wait.
_MIN_RETRY_SECONDS: Final = 1.0
_MAX_RETRY_SECONDS: Final = 60.0


class Admission:
    """The permits of one engine.

    Args:
        max_running: Units in the engine at once.
        max_queued: Calls that may wait.
        queue_timeout_seconds: The longest wait.

    Attributes:
        running: Units of all permits held.
        refused: Calls refused since the start.
    """

    def __init__(
        self,
        max_running: int,
        max_queued: int,
        queue_timeout_seconds: float,
    ) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._queue_timeout_seconds = queue_timeout_seconds
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        # Monotonic seconds of the last returns while calls waited: those of an engine with free
        # permits tell how often it is asked and not how fast it is.
        self._returned: deque[float] = deque(maxlen=_RATE_SAMPLES)
        self.running = 0
        self.refused = 0

    def __repr__(self) -> str:
        return (
            f"<Admission running {self.running}/{self._max_running} "
            f"queued {self.queued}/{self._max_queued} refused {self.refused}>"
        )

    @property
    def queued(self) -> int:
        """Calls that wait now."""
        return len(self._queue)

    def permit(self, cost: int) -> AbstractAsyncContextManager[None]:
        """Waits for, holds and returns a permit of `cost` units.

        Raises:
            InferenceError: On entering, server_overloaded (the queue is full) or queue_timeout.
        """
        return _Permit(self, min(cost, self._max_running))

    def refusal(self) -> InferenceError:
        """Counts and makes a refusal: there is no room for another call."""
        self.refused += 1
        return overloaded(self._retry_ms())

    async def _take(self, cost: int) -> None:
        if self._queue or self.running + cost > self._max_running:
            await self._wait(cost)
        else:
            self.running += cost

    def _give_back(self, cost: int) -> None:
        self.running -= cost
        if self._queue:
            self._returned.append(time.monotonic())
            self._grant()
        else:
            self._returned.clear()

    async def _wait(self, cost: int) -> None:
        if len(self._queue) >= self._max_queued:
            raise self.refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (cost, turn)
        self._queue.append(entry)
        try:
            async with asyncio.timeout(self._queue_timeout_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # granted in the same loop turn
                self.running -= cost
            elif entry in self._queue:  # _grant drops cancelled waiters too
                self._queue.remove(entry)
            self._grant()
            if isinstance(error, TimeoutError):
                self.refused += 1
                raise InferenceError(
                    "queue_timeout",
                    OVERLOADED,
                    retry_after_ms=self._retry_ms(),
                ) from error
            raise

    def _retry_ms(self) -> int:
        """Milliseconds until the calls that wait now will have run, at the recent rate."""
        seconds = _MIN_RETRY_SECONDS
        if len(self._returned) > 1:
            period = (time.monotonic() - self._returned[0]) / (len(self._returned) - 1)
            seconds = period * len(self._queue)
        return int(1000 * min(max(seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS))

    def _grant(self) -> None:
        while self._queue and self.running + self._queue[0][0] <= self._max_running:
            cost, turn = self._queue.popleft()
            if not turn.done():
                self.running += cost
                turn.set_result(None)


class _Permit(AbstractAsyncContextManager[None]):
    __slots__ = ("_admission", "_cost")

    def __init__(self, admission: Admission, cost: int) -> None:
        self._admission = admission
        self._cost = cost

    async def __aenter__(self) -> None:
        await self._admission._take(self._cost)

    async def __aexit__(self, *_: object) -> None:
        self._admission._give_back(self._cost)
