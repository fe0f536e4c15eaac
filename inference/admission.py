"""How much work an engine gets at once: permits, and a short bounded queue for the rest."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager

from inference.errors import InferenceError


class Admission:
    """Grants permits in order of arrival.

    A permit is held until the answer ends, not until it begins. Waiters that go away leave
    the queue at once and never reach the engine.

    Args:
        max_running: Units (choices, inputs) in the engine at once.
        max_queued: Requests that may wait.
        queue_timeout_seconds: The longest wait.
    """

    def __init__(self, max_running: int, max_queued: int, queue_timeout_seconds: float) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._queue_timeout_seconds = queue_timeout_seconds
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.running = 0
        self.refused = 0

    def __repr__(self) -> str:
        return (
            f"<Admission running {self.running}/{self._max_running} "
            f"queued {self.queued}/{self._max_queued} refused {self.refused}>"
        )

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    def permit(self, cost: int) -> AbstractAsyncContextManager[None]:
        """Waits for, holds and gives back `cost` units.

        A cost above `max_running` takes all of it, so that it can run alone.

        Raises:
            InferenceError: On entering, server_overloaded (the queue is full) or queue_timeout.
        """
        return _Permit(self, min(cost, self._max_running))

    async def _take(self, cost: int) -> None:
        if self._queue or self.running + cost > self._max_running:
            await self._wait(cost)
        else:
            self.running += cost

    def _give_back(self, cost: int) -> None:
        self.running -= cost
        self._grant()

    async def _wait(self, cost: int) -> None:
        if len(self._queue) >= self._max_queued:
            self.refused += 1
            raise InferenceError(
                "server_overloaded",
                "The server is overloaded: too many requests are waiting. Please try again later.",
                retry_after_ms=1000,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (cost, turn)
        self._queue.append(entry)
        try:
            async with asyncio.timeout(self._queue_timeout_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # granted in the moment of giving up
                self.running -= cost
            elif entry in self._queue:  # it is not when _grant saw it cancelled first
                self._queue.remove(entry)
            self._grant()
            if isinstance(error, TimeoutError):
                self.refused += 1
                raise InferenceError(
                    "queue_timeout",
                    "The engine is currently overloaded, please try again later",
                    retry_after_ms=1000,
                ) from error
            raise

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
