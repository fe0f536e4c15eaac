"""Batches shared by callers: who runs when, and what a cancelled or failing one does to others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.engines.base import EngineDeadError
from inference.engines.batching import Batcher


class Model:
    """Answers the first token of each input; holds its thread while `gate` is clear."""

    def __init__(self) -> None:
        self.batches: list[list[Sequence[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append(list(batch))
        self.entered.set()
        self.gate.wait(30)
        if any(ids[0] < 0 for ids in batch):
            raise ValueError("negative")
        return np.array([[ids[0]] for ids in batch], dtype=np.float32)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    batcher = Batcher(model, max_batch_tokens=100)
    yield batcher
    model.gate.set()
    batcher.close(30)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_rows_come_back_in_the_order_of_the_inputs(batcher: Batcher) -> None:
    inputs = [[number] * (1 + number * 7 % 20) for number in range(200)]
    rows = await batcher.submit(inputs)
    assert rows[:, 0].tolist() == list(range(200))


async def test_batches_are_bounded_and_of_nearly_one_length(batcher: Batcher, model: Model) -> None:
    await batcher.submit([[1] * length for length in range(1, 64)])
    for batch in model.batches:
        longest = max(map(len, batch))
        assert len(batch) == 1 or len(batch) * longest <= 100
        assert sum(longest - len(ids) for ids in batch) <= 0.2 * longest * len(batch)
    assert len(model.batches) < 63


async def test_callers_share_batches(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    others = [asyncio.create_task(batcher.submit([[number]])) for number in range(1, 11)]
    await _until(lambda: batcher.health().running == 11)
    model.gate.set()
    await asyncio.gather(first, *others)
    assert len(model.batches) == 2


async def test_a_small_request_does_not_wait_for_a_large_one(
    batcher: Batcher, model: Model
) -> None:
    model.gate.clear()
    large = asyncio.create_task(batcher.submit([[1] * 100] * 1000))
    await _until(model.entered.is_set)
    small = asyncio.create_task(batcher.submit([[2]]))
    await _until(lambda: batcher.health().running == 2)
    model.gate.set()
    await asyncio.gather(small, large)
    assert model.batches.index([[2]]) < len(model.batches) // 2


async def test_cancelled_inputs_are_dropped_before_they_run(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    cancelled = asyncio.create_task(batcher.submit([[1]] * 500))
    kept = asyncio.create_task(batcher.submit([[2]]))
    await _until(lambda: batcher.health().running == 3)
    cancelled.cancel()
    await _until(lambda: batcher.health().running == 2)
    model.gate.set()
    await asyncio.gather(first, kept)
    assert sum(map(len, model.batches)) == 2


async def test_a_failing_batch_fails_its_callers_only(batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="negative"):
        await batcher.submit([[-1], [1]])
    assert (await batcher.submit([[3]])).tolist() == [[3.0]]
    assert batcher.health().alive


async def test_close_wakes_those_who_wait_and_refuses_others(
    batcher: Batcher, model: Model
) -> None:
    model.gate.clear()
    running = asyncio.create_task(batcher.submit([[0]] * 1000))
    await _until(model.entered.is_set)
    batcher.close(0)
    model.gate.set()
    with pytest.raises(EngineDeadError):
        await running
    with pytest.raises(EngineDeadError):
        await batcher.submit([[0]])
    await _until(lambda: not batcher.health().alive)


async def test_progress_ages_only_while_work_is_there(batcher: Batcher, model: Model) -> None:
    assert batcher.health().last_step_age_seconds == 0
    model.gate.clear()
    task = asyncio.create_task(batcher.submit([[0]]))
    await _until(lambda: batcher.health().last_step_age_seconds > 0.01)
    model.gate.set()
    await task
    assert batcher.health().last_step_age_seconds == 0
