"""A follower ends by a signal with status 0, and by anything else with status 1."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest

from contract import process
from inference import follow
from inference.config import ModelConfig
from inference.engines.node_link import JoinError
from inference.engines.nodes import Nodes
from tests.virtual_time import now, run_virtually

CONFIG = ModelConfig(id="m", engine="vllm", source="s")
NODES = Nodes(count=3, address="head", port=7)


class Follower:
    """Runs for so many seconds, and then ends or fails."""

    def __init__(self, seconds: float = 1000.0, error: Exception | None = None) -> None:
        self._seconds = seconds
        self._error = error
        self.ends: list[str] = []

    async def run(self) -> None:
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.ends.append("closed")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, float]]:
    """Follows; returns the status and the seconds that it took."""

    def run(
        follower: Follower, *, stop_after: float = 500.0, stuck_after: float = 600.0
    ) -> tuple[int, float]:
        created: list[Any] = []

        def create(*given: Any) -> Follower:
            created.append(given)
            return follower

        def stop_event() -> asyncio.Event:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(stop_after, stop.set)
            return stop

        async def watch() -> None:
            try:
                await asyncio.sleep(stuck_after)
            except asyncio.CancelledError:
                follower.ends.append("unwatched")
                raise

        monkeypatch.setattr(follow, "create_follower", create)
        monkeypatch.setattr(follow, "followed", lambda models, rank: (models[rank - 2], NODES))
        monkeypatch.setattr(process, "stop_event", stop_event)
        monkeypatch.setattr(process, "watch_event_loop", watch)
        monkeypatch.setattr(gc, "freeze", lambda: follower.ends.append("frozen"))

        async def main() -> tuple[int, float]:
            began = now()
            status = await follow.follow_until_stopped([CONFIG], 2)
            assert len(asyncio.all_tasks()) == 1
            return status, now() - began

        result = run_virtually(main())
        assert created == [(CONFIG, NODES, 2)]
        return result

    return run


Start = Callable[..., tuple[int, float]]


def test_signal_ends_it_with_status_0(start: Start) -> None:
    follower = Follower()
    assert start(follower, stop_after=5.0) == (0, 5.0)
    assert follower.ends == ["cancelled", "unwatched", "closed", "frozen"]


def test_end_of_the_head_is_status_1(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower(seconds=3.0)
    assert start(follower) == (1, 3.0)
    assert follower.ends == ["unwatched", "closed", "frozen"]
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_refusal_of_the_head_is_one_line(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    assert start(Follower(1.0, JoinError("another model"))) == (1, 1.0)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "another model"
    assert record.exc_info is None


def test_failure_is_logged_with_its_traceback(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("a worker failed")
    follower = Follower(1.0, error)
    assert start(follower) == (1, 1.0)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert follower.ends == ["unwatched", "closed", "frozen"]


def test_end_of_the_watchdog_is_status_1(start: Start) -> None:
    assert start(Follower(), stuck_after=2.0) == (1, 2.0)
