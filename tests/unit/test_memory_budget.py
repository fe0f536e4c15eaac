"""Tests the memory budget: accepted and refused requests, and readers that are cut."""

from __future__ import annotations

import gc
import weakref
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
    holding.count(7)
    holding.add(7)
    holding.close()
    assert budget.used == 0


def test_default_is_a_part_of_the_memory_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1024 * 1024
    for machine, budget in ((1024, 256), (16 * 1024, 1024), (1024 * 1024, 4096)):
        monkeypatch.setattr(memory, "machine_memory", lambda machine=machine: machine * mib)
        assert memory.default_budget() == budget * mib


def test_failed_exchange_is_freed_without_a_collection() -> None:
    def fail() -> weakref.ref[Any]:
        translator = SimpleNamespace(source=lambda _: SimpleNamespace(text=lambda text: text))
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
