"""Batches that callers share: order, limits, cancellation and failure."""

from __future__ import annotations

import asyncio
import random
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


def _cost(lengths: Sequence[int], sizes: Sequence[int], batch_cost: int) -> int:
    """Positions of all batches, and the cost of each, for lengths that go down."""
    cost = begin = 0
    for size in sizes:
        cost += lengths[begin] * size + batch_cost
        begin += size
    return cost


def _splits(count: int) -> Iterator[list[int]]:
    """All ways to split this many inputs into batches, by the sizes of the batches."""
    if not count:
        yield []
    for first in range(1, count + 1):
        yield from ([first, *rest] for rest in _splits(count - first))


@pytest.mark.parametrize("batch_cost", [0, 4, 24, 1000])
@pytest.mark.parametrize("seed", range(3))
async def test_split_of_a_window_has_the_least_cost_of_all(
    batcher: Batcher, model: Model, batch_cost: int, seed: int
) -> None:
    batcher.batch_cost = batch_cost
    chosen = random.Random(seed)
    lengths = sorted((chosen.randint(1, 60) for _ in range(10)), reverse=True)
    inputs = [[1] * length for length in lengths]
    sizes = [len(batch) for batch in await _window(batcher, model, inputs)]
    bounded = (
        each
        for each in _splits(len(lengths))
        if all(size == 1 or size * lengths[sum(each[:at])] <= 100 for at, size in enumerate(each))
    )
    least = min(_cost(lengths, each, batch_cost) for each in bounded)
    assert _cost(lengths, sizes, batch_cost) == least


async def test_batches_are_bounded(batcher: Batcher, model: Model) -> None:
    await batcher.submit([[1] * length for length in range(1, 64)])
    for batch in model.batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 100
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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inference.engines.batching.time", clock)
    return clock


async def _window(
    batcher: Batcher, model: Model, *requests: Sequence[Sequence[int]]
) -> list[list[Sequence[int]]]:
    """The batches of requests that wait together."""
    model.gate.clear()
    model.entered.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    model.batches.clear()
    tasks = [asyncio.create_task(batcher.submit(inputs)) for inputs in requests]
    await _until(lambda: batcher.health().running == 1 + len(requests))
    model.gate.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    return model.batches


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([10] * 10, [10]),  # exactly 100 positions
        ([10] * 11, [1, 10]),
        ([30, 7], [2]),  # 23 positions of padding, and a batch costs 24
        ([30, 5], [1, 1]),
        ([10, 10, 9, 8, 6, 3, 3], [7]),
        ([150, 60, 50], [1, 1, 1]),
        ([100, 50, 50], [1, 2]),
        ([1] * 65, [64, 1]),
        ([3, 50, 4], [1, 2]),  # the longest first
    ],
    ids=str,
)
async def test_batches_of_one_window(
    batcher: Batcher, model: Model, lengths: list[int], batches: list[int]
) -> None:
    inputs = [[1] * length for length in lengths]
    assert [len(batch) for batch in await _window(batcher, model, inputs)] == batches


async def test_window_takes_an_input_of_each_request_in_turn(
    batcher: Batcher, model: Model
) -> None:
    seen = await _window(batcher, model, [[1]] * 100, [[2]] * 3, [[3]])
    assert [ids[0] for ids in seen[0][:8]] == [1, 2, 3, 1, 2, 1, 2, 1]


async def test_made_vectors_are_counted(batcher: Batcher, model: Model) -> None:
    assert batcher.health().generated_tokens == 0
    await _window(batcher, model, [[1]] * 5, [[-1], [2]])
    assert batcher.health().generated_tokens in (1 + 5, 1 + 6)
    assert batcher.health().running == 0


async def test_failed_inputs_and_looks_at_the_device_are_not_counted(batcher: Batcher) -> None:
    await batcher.submit([[3]])
    with pytest.raises(ValueError, match="negative"):
        await batcher.submit([[-1]])
    await batcher.submit([[5]])
    assert batcher.health().generated_tokens == 2


async def test_failed_request_runs_none_of_its_other_inputs(
    batcher: Batcher, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    seen = await _window(batcher, model, [[-1] * 90, *[[n] * 50 for n in range(1, 5)]])
    await _until(lambda: len(seen) > 1)
    # The input that fails, the one that has worked before, and no other.
    assert seen == [[[-1] * 90], [[0]]]
    assert caplog.messages == ["a batch of 1 inputs failed"]


async def test_batch_that_fails_is_run_one_input_at_a_time(
    batcher: Batcher, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    seen = await _window(batcher, model, [[5]], [[-1]], [[6]])
    assert seen == [[[5], [-1], [6]], [[5]], [[-1]], [[0]], [[6]]]
    assert caplog.messages == ["a batch of 3 inputs failed", "a batch of 1 inputs failed"]


async def test_first_input_that_worked_shows_whether_the_device_works(
    batcher: Batcher, model: Model
) -> None:
    await batcher.submit([[7] * 3, [8] * 3])
    await batcher.submit([[9]])
    with pytest.raises(ValueError, match="negative"):
        await batcher.submit([[-1]])
    await _until(lambda: len(model.batches) == 4)
    assert model.batches == [[[7] * 3, [8] * 3], [[9]], [[-1]], [[8] * 3]]
    assert batcher.health().alive


async def test_input_that_fails_before_any_has_worked_fails_alone(
    batcher: Batcher, model: Model
) -> None:
    with pytest.raises(ValueError, match="negative"):
        await batcher.submit([[-1]])
    assert model.batches == [[[-1]]]
    assert (await batcher.submit([[3]])).tolist() == [[3.0]]


async def test_broken_device_fails_every_caller_that_waits(
    batcher: Batcher, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    await batcher.submit([[3]])
    model.gate.clear()
    model.entered.clear()
    model.broken = True
    first = asyncio.create_task(batcher.submit([[1]]))
    await _until(model.entered.is_set)
    second = asyncio.create_task(batcher.submit([[2]]))
    await _until(lambda: batcher.health().running == 2)
    model.gate.set()
    with pytest.raises(ValueError, match="broken"):
        await first
    with pytest.raises(EngineDeadError):
        await second
    assert "the model fails for inputs that it has embedded before" in caplog.messages


async def test_close_starts_no_other_batch(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    running = asyncio.create_task(batcher.submit([[1] * 100, [2] * 100]))
    await _until(model.entered.is_set)
    batcher.close(0)
    model.gate.set()
    with pytest.raises(EngineDeadError):
        await running
    assert len(model.batches) == 1


async def test_close_waits_for_the_running_batch(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    running = asyncio.create_task(batcher.submit([[1]]))
    await _until(model.entered.is_set)
    asyncio.get_running_loop().call_later(0.05, model.gate.set)
    await asyncio.to_thread(batcher.close, 30)
    assert not batcher.health().alive
    assert (await running).tolist() == [[1.0]]


async def test_idle_batcher_can_be_closed(model: Model) -> None:
    batcher = Batcher(model, 100)
    await asyncio.to_thread(batcher.close, 30)
    assert not batcher.health().alive
    with pytest.raises(EngineDeadError):
        await batcher.submit([[1]])


async def test_callers_around_a_cancelled_one_share_a_batch(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[0]]))
    await _until(model.entered.is_set)
    tasks = [asyncio.create_task(batcher.submit([[number]])) for number in (1, 2, 3)]
    await _until(lambda: batcher.health().running == 4)
    tasks[1].cancel()
    await _until(lambda: batcher.health().running == 3)
    model.gate.set()
    await asyncio.gather(first, tasks[0], tasks[2])
    assert model.batches == [[[0]], [[1], [3]]]


async def test_cancelled_input_of_a_taken_window_is_not_run(batcher: Batcher, model: Model) -> None:
    model.gate.clear()
    large = asyncio.create_task(batcher.submit([[1] * 100, [2] * 90]))
    await _until(model.entered.is_set)
    large.cancel()
    await _until(lambda: batcher.health().running == 0)
    model.gate.set()
    await batcher.submit([[3]])
    assert model.batches == [[[1] * 100], [[3]]]


async def test_model_that_makes_too_few_vectors_ends_the_engine() -> None:
    batcher = Batcher(lambda _: np.ones((1, 1), dtype=np.float32), 100)
    async with asyncio.timeout(30):
        with pytest.raises(EngineDeadError):
            await batcher.submit([[1], [2]])
    batcher.close(30)


async def test_caller_that_comes_while_the_thread_ends_gets_an_error(
    batcher: Batcher, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    await batcher.submit([[3]])
    model.broken = True
    with pytest.raises((ValueError, EngineDeadError)):
        await batcher.submit([[4]])
    await _until(lambda: not batcher.health().alive)
    monkeypatch.setattr(batcher._thread, "is_alive", lambda: True)
    async with asyncio.timeout(30):
        with pytest.raises(EngineDeadError):
            await batcher.submit([[3]])


async def test_process_may_exit_while_a_batch_runs(batcher: Batcher) -> None:
    threads = [thread for thread in threading.enumerate() if thread.name == "embedding"]
    assert threads
    assert all(thread.daemon for thread in threads)


async def test_caller_whose_loop_is_closed_is_no_concern(batcher: Batcher, model: Model) -> None:
    model.gate.clear()

    def other_loop() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(batcher.submit([[1]]))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop._scheduled.clear()  # type: ignore[attr-defined]
        abandoned.append(task)
        loop.close()

    abandoned: list[asyncio.Task[NDArray[np.float32]]] = []
    await asyncio.to_thread(other_loop)
    await _until(model.entered.is_set)
    model.gate.set()
    assert (await batcher.submit([[2]])).tolist() == [[2.0]]
    assert batcher.health().alive
    abandoned[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    abandoned[0].get_coro().close()  # type: ignore[union-attr]


async def test_step_age_counts_from_the_first_waiting_caller(
    clock: Clock, batcher: Batcher, model: Model
) -> None:
    clock.now += 100
    assert batcher.health().last_step_age_seconds == 0
    assert batcher.health().slow_step_seconds == 10.0
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([[1]]))
    await _until(model.entered.is_set)
    clock.now += 5
    second = asyncio.create_task(batcher.submit([[2]]))
    await _until(lambda: batcher.health().running == 2)
    assert batcher.health().last_step_age_seconds == 5
    model.gate.set()
    await asyncio.gather(first, second)
    assert batcher.health().last_step_age_seconds == 0


@pytest.mark.parametrize("inputs", [[[1], [2] * 100], [[-1] * 10, [1] * 2]], ids=["done", "failed"])
async def test_every_batch_is_progress(
    clock: Clock, batcher: Batcher, model: Model, inputs: list[list[int]]
) -> None:
    batches: list[float] = []
    run = batcher._run

    def slow(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        batches.append(batcher.health().last_step_age_seconds)
        clock.now += 7
        return run(batch)

    await batcher.submit([[3]])
    batcher._run = slow
    other = asyncio.create_task(batcher.submit([[4] * 60, [5] * 30, [6] * 10]))
    await asyncio.gather(other, batcher.submit(inputs), return_exceptions=True)
    assert len(batches) > 3
    assert set(batches) == {0.0}


async def test_bound_of_a_step_is_at_least_ten_seconds(batcher: Batcher, model: Model) -> None:
    batcher.measured = Measured(tokens=10, seconds=0.5)
    bounds = []
    # Half as long as measured, and twenty of the shortest.
    for inputs in ([[0] * 5], [[0] * 5] * 20, [[0]] * 5):
        model.gate.clear()
        model.entered.clear()
        running = asyncio.create_task(batcher.submit(inputs))
        await _until(model.entered.is_set)
        bounds.append(batcher.health().slow_step_seconds)
        model.gate.set()
        await running
    assert bounds == [10.0, 100.0, 10.0]


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
    assert lengths == [1, 1, 1, 1, 2048]
