"""Permits and the queue in front of an engine, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from inference.admission import Admission
from inference.errors import InferenceError
from tests.virtual_time import now, run_virtually, settle

TIMEOUT = 5.0


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.admission.time", SimpleNamespace(monotonic=now))


class Calls:
    """Calls for one Admission, and the order of their grants."""

    def __init__(
        self,
        running: int = 2,
        queued: int = 10,
        timeout: float = TIMEOUT,
    ) -> None:
        self.admission = Admission(running, queued, timeout)
        self.granted: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def call(self, name: str, cost: int = 1) -> None:
        """Starts a call, which holds its permit until `end`."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._call(name, cost))
        await settle()

    async def _call(self, name: str, cost: int) -> None:
        async with self.admission.permit(cost):
            self.granted.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()
        assert self._tasks[name].cancelled()

    def refusal(self, name: str) -> InferenceError:
        """The error of a call that was refused."""
        error = self._tasks[name].exception()
        assert isinstance(error, InferenceError)
        return error


def virtually(test: Coroutine[Any, Any, None]) -> None:
    run_virtually(test)


def test_calls_within_the_units_run_at_once() -> None:
    async def test() -> None:
        calls = Calls(running=3)
        await calls.call("a", cost=2)
        await calls.call("b", cost=1)
        assert calls.granted == ["a", "b"]
        assert (calls.admission.running, calls.admission.queued) == (3, 0)
        await calls.call("c")
        assert (calls.admission.running, calls.admission.queued) == (3, 1)
        assert repr(calls.admission) == "<Admission running 3/3 queued 1/10 refused 0>"
        await calls.end("a", "b", "c")
        assert (calls.admission.running, calls.admission.queued) == (0, 0)

    virtually(test())


def test_call_that_costs_more_than_all_units_runs_alone() -> None:
    async def test() -> None:
        calls = Calls(running=2)
        await calls.call("huge", cost=5)
        assert calls.admission.running == 2
        await calls.call("small")
        assert calls.granted == ["huge"]
        await calls.end("huge")
        assert calls.granted == ["huge", "small"]
        assert calls.admission.running == 1
        await calls.end("small")

    virtually(test())


def test_small_newcomer_waits_behind_a_large_call_although_it_would_fit() -> None:
    async def test() -> None:
        calls = Calls(running=3)
        await calls.call("first", cost=2)
        await calls.call("large", cost=3)
        await calls.call("small", cost=1)
        assert calls.granted == ["first"]
        await calls.end("first")
        assert calls.granted == ["first", "large"]
        await calls.end("large")
        assert calls.granted == ["first", "large", "small"]
        await calls.end("small")

    virtually(test())


def test_returned_units_are_granted_to_as_many_waiters_as_fit_oldest_first() -> None:
    async def test() -> None:
        calls = Calls(running=4)
        await calls.call("all", cost=4)
        for name, cost in (("a", 1), ("b", 2), ("c", 2), ("d", 1)):
            await calls.call(name, cost=cost)
        await calls.end("all")
        assert calls.granted == ["all", "a", "b"]
        assert (calls.admission.running, calls.admission.queued) == (3, 2)
        await calls.end("a")
        assert calls.granted == ["all", "a", "b", "c"]
        await calls.end("b", "c", "d")
        assert calls.granted[-1] == "d"
        assert calls.admission.running == 0

    virtually(test())


def test_full_queue_refuses_and_counts_what_it_refused() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=2)
        for name in ("run", "a", "b", "c", "d"):
            await calls.call(name)
        assert calls.admission.queued == 2
        assert [calls.refusal(name).reason for name in ("c", "d")] == ["server_overloaded"] * 2
        assert calls.refusal("c").message == (
            "The server is overloaded: too many requests are waiting. Please try again later."
        )
        assert calls.admission.refused == 2
        await calls.end("run", "a", "b")
        assert calls.granted == ["run", "a", "b"]

    virtually(test())


def test_refusal_for_another_reason_counts_as_well() -> None:
    async def test() -> None:
        calls = Calls(running=1)
        await calls.call("run")
        refusal = calls.admission.refusal()
        assert (refusal.reason, refusal.retry_after_ms) == ("server_overloaded", 1000)
        assert (calls.admission.running, calls.admission.queued) == (1, 0)
        assert calls.admission.refused == 1
        await calls.end("run")

    virtually(test())


def test_wait_ends_with_queue_timeout_exactly_at_its_bound() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=2)
        await calls.call("run")
        await calls.call("late")
        await calls.call("next")
        await asyncio.sleep(TIMEOUT - 0.01)
        assert calls.admission.queued == 2
        await asyncio.sleep(0.02)
        await settle()
        assert calls.refusal("late").reason == "queue_timeout"
        assert calls.refusal("late").retry_after_ms == 1000
        assert (calls.admission.queued, calls.admission.refused) == (0, 2)
        assert calls.granted == ["run"]
        await calls.call("after")  # their places are free again
        assert calls.admission.queued == 1
        await calls.end("run", "after")
        assert calls.admission.running == 0

    virtually(test())


def test_waiter_that_leaves_lets_the_ones_behind_it_run() -> None:
    async def test() -> None:
        calls = Calls(running=3)
        await calls.call("run", cost=2)
        await calls.call("large", cost=3)
        await calls.call("a", cost=1)
        await calls.call("b", cost=1)
        await calls.cancel("large")
        assert calls.granted == ["run", "a"]
        assert (calls.admission.running, calls.admission.queued) == (3, 1)
        assert calls.admission.refused == 0
        await calls.end("run", "a", "b")
        assert calls.granted == ["run", "a", "b"]

    virtually(test())


def test_head_that_times_out_lets_the_ones_behind_it_run() -> None:
    async def test() -> None:
        calls = Calls(running=3)
        await calls.call("run", cost=2)
        await calls.call("large", cost=3)
        await asyncio.sleep(1)
        await calls.call("a", cost=1)
        await asyncio.sleep(TIMEOUT - 1)
        await settle()
        assert calls.granted == ["run", "a"]
        await calls.end("run", "a")

    virtually(test())


@pytest.mark.parametrize("behind", [1, 2])
def test_call_cancelled_in_the_turn_of_its_grant_returns_its_permit(behind: int) -> None:
    async def test() -> None:
        calls = Calls(running=2)
        await calls.call("run", cost=2)
        await calls.call("gone", cost=2)
        await calls.call("next", cost=behind)
        calls._ends["run"].set()
        while calls.admission.queued == 2:
            await asyncio.sleep(0)
        assert calls.admission.running == 2  # granted, and not yet running
        await calls.cancel("gone")
        assert calls.granted == ["run", "next"]
        assert calls.admission.running == behind
        await calls.end("next")
        assert calls.admission.running == 0

    virtually(test())


def test_call_cancelled_in_the_turn_before_the_grant_is_passed_over() -> None:
    async def test() -> None:
        calls = Calls(running=1)
        for name in ("run", "gone", "next"):
            await calls.call(name)
        calls._ends["run"].set()
        await asyncio.sleep(0)
        calls._tasks["gone"].cancel()
        await settle()
        assert calls.granted == ["run", "next"]
        assert (calls.admission.running, calls.admission.queued) == (1, 0)
        await calls.end("next")
        assert calls.admission.running == 0

    virtually(test())


def test_refusal_tells_when_the_waiting_calls_will_have_run() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=4, timeout=1000)
        await calls.call("0")
        for number in range(1, 5):
            await calls.call(str(number))
        await calls.call("early")
        assert calls.refusal("early").retry_after_ms == 1000  # no rate is known yet
        for number in range(3):
            await asyncio.sleep(2)
            await calls.end(str(number))
            await calls.call(f"more {number}")
        # Three returns, one in 2 s, and four wait.
        await calls.call("refused")
        assert calls.refusal("refused").retry_after_ms == 8_000
        # The time since the last return counts as well: 3 periods of 4 s / 2 + 8 s / 2.
        await asyncio.sleep(8)
        await calls.call("slower")
        assert calls.refusal("slower").retry_after_ms == 24_000
        await asyncio.sleep(100)
        await calls.call("much slower")
        assert calls.refusal("much slower").retry_after_ms == 60_000
        await calls.end("3", "4", "more 0", "more 1", "more 2")
        assert calls.admission.running == 0

    virtually(test())


def test_one_return_alone_is_no_rate() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=1, timeout=1000)
        await calls.call("0")
        await calls.call("1")
        await asyncio.sleep(10)
        await calls.end("0")
        await calls.call("2")
        await asyncio.sleep(10)
        await calls.call("refused")
        assert calls.refusal("refused").retry_after_ms == 1000
        await calls.end("1", "2")

    virtually(test())


def test_two_returns_are_a_rate() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=2, timeout=1000)
        for name in ("0", "1", "2"):
            await calls.call(name)
        for number in range(2):
            await asyncio.sleep(5)
            await calls.end(str(number))
            await calls.call(f"{number + 3}")
        await calls.call("refused")
        assert calls.refusal("refused").retry_after_ms == 10_000
        await calls.end("2", "3", "4")

    virtually(test())


def test_rate_is_forgotten_when_no_call_waits() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=2, timeout=1000)
        for name in ("0", "1", "2"):
            await calls.call(name)
        for name in ("0", "1", "2"):
            await asyncio.sleep(20)
            await calls.end(name)
        for name in ("3", "4", "5"):
            await calls.call(name)
        await calls.call("refused")
        assert calls.refusal("refused").retry_after_ms == 1000
        await calls.end("3", "4", "5")

    virtually(test())


def test_rate_is_that_of_the_last_32_returns() -> None:
    async def test() -> None:
        calls = Calls(running=1, queued=10, timeout=10_000)
        for number in range(11):
            await calls.call(str(number))
        # 20 returns, one in 10 s, 17, one in 3 s, and 16, one in 1 s.
        for number in range(20 + 17 + 16):
            await asyncio.sleep(10 if number < 20 else 3 if number < 37 else 1)
            await calls.end(str(number))
            await calls.call(str(number + 11))
        await calls.call("refused")
        # The first of 32 was 15 x 3 s and 16 x 1 s ago, and 10 wait.
        assert calls.refusal("refused").retry_after_ms == int(1000 * 61 / 31 * 10)
        for number in range(53, 64):
            await calls.end(str(number))
        assert calls.admission.running == 0

    virtually(test())
