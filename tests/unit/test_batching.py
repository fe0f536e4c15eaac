"""Batches that callers share: order, limits, cancellation and failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.config import ModelConfig
from inference.engines.base import EngineDeadError
from inference.engines.batching import Batcher, Measured
from inference.engines.embedding_engine import SentenceTransformersEngine


class Model:
    """Returns each input's first token as its vector; blocks its thread while `gate` is clear."""

    def __init__(self) -> None:
        self.batches: list[list[Sequence[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = False

    def __call__(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.batches.append(list(batch))
        self.entered.set()
        self.gate.wait(30)
        if self.broken:
            raise ValueError("broken")
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


async def test_rows_are_returned_in_input_order(batcher: Batcher) -> None:
    inputs = [[number] * (1 + number * 7 % 20) for number in range(200)]
    rows = await batcher.submit(inputs)
    assert rows[:, 0].tolist() == list(range(200))


async def test_batches_are_bounded_and_hold_inputs_of_similar_length(
    batcher: Batcher, model: Model
) -> None:
    await batcher.submit([[1] * length for length in range(1, 64)])
    for batch in model.batches:
        longest = max(map(len, batch))
        assert len(batch) == 1 or len(batch) * longest <= 100
        assert sum(longest - len(ids) for ids in batch) <= 0.2 * longest * len(batch)
    assert len(model.batches) < 63


async def test_waiting_inputs_of_ten_callers_share_one_batch(
    batcher: Batcher, model: Model
) -> None:
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    others = [asyncio.create_task(batcher.submit([[number]])) for number in range(1, 11)]
    await _until(lambda: batcher.health().running == 11)
    model.gate.set()
    await asyncio.gather(first, *others)
    assert len(model.batches) == 2


async def test_small_request_runs_before_a_large_one_ends(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    large = asyncio.create_task(batcher.submit([[1] * 100] * 1000))
    await _until(model.entered.is_set)
    small = asyncio.create_task(batcher.submit([[2]]))
    await _until(lambda: batcher.health().running == 2)
    model.gate.set()
    await asyncio.gather(small, large)
    assert model.batches.index([[2]]) < len(model.batches) // 2


async def test_cancelled_inputs_never_reach_the_model(batcher: Batcher, model: Model) -> None:
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


async def test_thread_survives_many_callers_that_leave_at_once(batcher: Batcher) -> None:
    for _ in range(1200):  # More than Python's limit of nested calls.
        call = batcher.submit([[1]])
        call.send(None)
        call.close()
        await asyncio.sleep(0.0005)  # The thread wakes up and finds nothing to do.
    assert await batcher.submit([[2]]) == [[2.0]]


async def test_input_that_fails_fails_only_its_own_caller(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    bad = asyncio.create_task(batcher.submit([[-1], [1]]))
    good = [asyncio.create_task(batcher.submit([[number]])) for number in range(2, 7)]
    await _until(lambda: batcher.health().running == 7)
    model.gate.set()
    await first
    with pytest.raises(ValueError, match="negative"):
        await bad
    assert [(await task).tolist() for task in good] == [[[float(n)]] for n in range(2, 7)]
    assert batcher.health().alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_model_that_fails_for_what_it_has_embedded_before_ends_the_engine(
    batcher: Batcher, model: Model
) -> None:
    await batcher.submit([[3]])
    model.broken = True
    with pytest.raises((ValueError, EngineDeadError)):
        await batcher.submit([[4]])
    await _until(lambda: not batcher.health().alive)
    with pytest.raises(EngineDeadError):
        await batcher.submit([[3]])


async def test_close_fails_waiting_and_later_callers(batcher: Batcher, model: Model) -> None:
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


async def test_step_age_grows_only_while_work_is_waiting(batcher: Batcher, model: Model) -> None:
    assert batcher.health().last_step_age_seconds == 0
    model.gate.clear()
    task = asyncio.create_task(batcher.submit([[0]]))
    await _until(lambda: batcher.health().last_step_age_seconds > 0.01)
    model.gate.set()
    await task
    assert batcher.health().last_step_age_seconds == 0


async def test_bound_of_a_step_grows_with_its_work(batcher: Batcher, model: Model) -> None:
    await batcher.submit([[0]])
    batcher.measured = Measured(tokens=10, seconds=1.0)
    bounds = []
    # As long as measured, twice as long, and ten of them.
    for inputs in ([[0] * 10], [[0] * 20], [[0] * 10] * 10):
        model.gate.clear()
        model.entered.clear()
        running = asyncio.create_task(batcher.submit(inputs))
        await _until(model.entered.is_set)
        bounds.append(batcher.health().slow_step_seconds)
        model.gate.set()
        await running
    assert bounds == [20.0, 80.0, 200.0]


async def test_start_times_no_longer_input_than_a_batch_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The longest input of a model for 32,768 tokens takes two cores half an hour."""
    config = ModelConfig(id="m", engine="sentence-transformers", source="x")
    engine = SentenceTransformersEngine(config)
    lengths: list[int] = []

    def run(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        lengths.extend(map(len, batch))
        return np.ones((len(batch), 1), dtype=np.float32)

    def load(_report: object) -> None:
        engine._limit, engine._longest_token, engine._sizes = 32_768, 8, (1,)
        engine._prefix, engine._suffix, engine._prompt = [], [], ""
        engine._tokenizer = lambda text, **_: {"input_ids": [1] * len(text.split())}
        engine._batcher = Batcher(run, 2048)

    monkeypatch.setattr(engine, "_load", load)
    await engine.start(lambda _: None)
    await engine.close()
    assert lengths == [1, 2048]
