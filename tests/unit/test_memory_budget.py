"""Tests the memory budget: accepted and refused requests, and readers that are cut."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest

from contract import memory
from contract.memory import SMALL_BYTES, Holding, MemoryBudget, MemorySpentError
from edge.exchange.machine import Exchange
from edge.openai.errors import overloaded
from inference.rpc import FaultGuard
from isthmus.v1.generate_pb2 import GenerateRequest

LIMIT = 10 * SMALL_BYTES


def held(budget: MemoryBudget, size: int) -> Holding:
    holding = Holding(budget)
    holding.take(size)
    return holding


def test_large_requests_get_half_of_the_budget_and_small_ones_all_of_it() -> None:
    budget = MemoryBudget(LIMIT)
    holdings = [held(budget, LIMIT // 2)]
    with pytest.raises(MemorySpentError):
        held(budget, SMALL_BYTES + 1)
    holdings += [held(budget, SMALL_BYTES) for _ in range(5)]
    with pytest.raises(MemorySpentError):
        held(budget, 1)
    assert budget.used == LIMIT
    holdings.clear()
    assert budget.used == 0


def test_large_requests_get_half_of_what_is_not_set_aside() -> None:
    budget = MemoryBudget(2 * LIMIT)
    budget.set_aside(LIMIT)
    assert budget.used == LIMIT
    holdings = [held(budget, LIMIT // 2)]
    with pytest.raises(MemorySpentError):
        held(budget, SMALL_BYTES + 1)
    holdings += [held(budget, SMALL_BYTES) for _ in range(5)]
    with pytest.raises(MemorySpentError):
        held(budget, 1)
    assert budget.used == 2 * LIMIT
    budget.set_aside(-LIMIT)
    assert budget.used == sum(each.size for each in holdings) == LIMIT


def test_request_that_grows_is_small_only_up_to_its_own_size() -> None:
    budget = MemoryBudget(LIMIT)
    large, growing = held(budget, LIMIT // 2), held(budget, SMALL_BYTES)
    with pytest.raises(MemorySpentError):
        growing.take(1)
    assert (large.size, growing.size) == (LIMIT // 2, SMALL_BYTES)


def test_room_for_output_is_made_by_cutting_the_reader_that_is_blocked_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: now))
    budget, cut = MemoryBudget(LIMIT), []
    for name in ("slowest", "slow", "fast"):
        reader = Holding(budget)
        reader.add(3 * SMALL_BYTES)
        reader.blocked(lambda name=name: cut.append(name))  # type: ignore[misc]
        if name == "fast":
            reader.unblocked()
        now += 10
    running = Holding(budget)
    running.add(4 * SMALL_BYTES)
    assert cut == ["slowest"]
    assert budget.used == LIMIT
    running.add(1)
    assert cut == ["slowest", "slow"]
    with pytest.raises(MemorySpentError):
        running.add(4 * SMALL_BYTES)
    assert budget.used == 7 * SMALL_BYTES + 1


def test_reader_that_is_blocked_for_a_moment_is_not_cut() -> None:
    budget = MemoryBudget(LIMIT)
    reader = Holding(budget)
    reader.add(LIMIT)
    reader.blocked(lambda: pytest.fail("it was cut"))
    with pytest.raises(MemorySpentError):
        Holding(budget).add(1)


def test_closed_holding_counts_nothing() -> None:
    budget = MemoryBudget(LIMIT)
    holding = Holding(budget)
    holding.take(5)
    holding.close()
    assert budget.used == 0
    holding.count(7)
    holding.add(7)
    holding.take(7)
    assert (budget.used, holding.size) == (0, 0)


def test_output_may_fill_the_budget_to_its_last_byte() -> None:
    budget, cut = MemoryBudget(LIMIT), []
    reader = held(budget, 5)
    reader.blocked(lambda: cut.append("reader"))
    reader._blocked_at -= 60
    Holding(budget).add(LIMIT - 5)
    assert cut == []


def test_request_of_64_kib_is_small() -> None:
    budget = MemoryBudget(1024 * 1024)
    holdings = [held(budget, 512 * 1024)]
    assert not budget.has_room(64 * 1024 + 1)
    assert budget.has_room(64 * 1024)
    assert budget.has_room(64 * 1024 - 1, 1)
    assert not budget.has_room(64 * 1024, 1)
    assert len(holdings) == 1


def test_whole_budget_is_for_small_requests_if_nothing_is_set_aside() -> None:
    budget = MemoryBudget(1000)
    assert budget.has_room(1000)
    assert not budget.has_room(1001)
    assert repr(budget) == "<MemoryBudget 0/1000 bytes>"


def test_reader_is_cut_after_one_second_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: now))
    budget, cut = MemoryBudget(LIMIT), []
    reader = Holding(budget)
    reader.add(LIMIT)
    reader.blocked(lambda: cut.append("reader"))
    now += 0.9
    with pytest.raises(MemorySpentError):
        Holding(budget).add(1)
    assert cut == []
    now += 0.1
    running = Holding(budget)
    running.add(1)
    assert (cut, budget.used, running.size) == (["reader"], 1, 1)


def test_error_keeps_no_frame_and_no_other_error() -> None:
    with pytest.raises(MemorySpentError) as caught:
        try:
            raise ValueError
        except ValueError as cause:
            raise MemorySpentError from cause
    kept = memory.without_frames(caught.value)
    assert kept is caught.value
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        ([None, None], 8 * 4096),
        (["max\n", "9000\n"], 9000),
        (["9000\n", None], 9000),
        ([None, "9000\n"], 9000),
        (["100000000\n", None], 8 * 4096),
        (["9000\n", "5000\n"], 5000),
    ],
)
def test_memory_is_that_of_the_machine_or_of_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: list[str | None], want: int
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    paths = [tmp_path / str(number) for number in range(len(limits))]
    for path, text in zip(paths, limits, strict=True):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(memory, "_LIMITS", paths)
    assert memory.machine_memory() == want


def test_default_is_a_part_of_the_memory_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1024 * 1024
    for machine, budget in ((1024, 256), (16 * 1024, 1024), (1024 * 1024, 4096)):
        monkeypatch.setattr(memory, "machine_memory", lambda machine=machine: machine * mib)
        assert memory.default_budget() == budget * mib


def test_failed_exchange_is_freed_without_a_collection() -> None:
    def fail() -> weakref.ref[Any]:
        source = SimpleNamespace(text=lambda text: text)
        translator = SimpleNamespace(source=lambda _: source, is_stream=False)
        exchange: Exchange[Any] = Exchange(translator)  # type: ignore[arg-type]
        exchange.fail(overloaded())
        exchange.sources.clear()
        with pytest.raises(type(overloaded())):
            exchange.raise_error()
        return weakref.ref(exchange)

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


async def test_request_whose_handler_never_runs_returns_its_memory() -> None:
    """Such as that of a call that is cancelled between its decoding and its first step."""
    budget = MemoryBudget(LIMIT)
    handler = grpc.unary_stream_rpc_method_handler(AsyncMock(), GenerateRequest.FromString)
    details: Any = SimpleNamespace(method="/isthmus.v1.InferenceService/Generate")
    guarded: Any = await FaultGuard(budget).intercept_service(
        AsyncMock(return_value=handler), details
    )
    data = GenerateRequest(text="x" * 100).SerializeToString()
    received = guarded.request_deserializer(data)
    assert budget.used == len(data)
    del received
    assert budget.used == 0
