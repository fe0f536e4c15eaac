"""Kept responses are bounded in bytes and seconds, and belong to a key."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from contract.memory import MemoryBudget
from edge import response_store
from edge.config import EdgeConfig
from edge.openai.responses.stored import Kept
from edge.response_store import KeyResponses, ResponseStore, open_response_store
from keys import ConfigError

MIB = 1 << 20
# Bytes that the store counts for each response besides its JSON, and for each item.
OF_EACH = 256


def kept(document: bytes = b"d", **items: bytes) -> Kept:
    return Kept(document, list(items.values()), list(items), 0)


class Clock:
    """The store's monotonic clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(response_store, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def opened(limit: int, seconds: float = 10.0) -> ResponseStore:
    return ResponseStore(limit, seconds, MemoryBudget(100 * MIB))


def has(responses: KeyResponses, *names: str) -> list[bool]:
    return [responses.response(name) is not None for name in names]


def test_oldest_responses_make_room_for_a_new_one(clock: Clock) -> None:
    size = OF_EACH + 100
    responses = opened(3 * size).of("k")
    for name in ("r1", "r2", "r3"):
        responses.keep(name, kept(bytes(100)))
    assert has(responses, "r1", "r2", "r3") == [True, True, True]
    responses.keep("r4", kept(bytes(101)))  # needs the room of two
    assert has(responses, "r1", "r2", "r3", "r4") == [False, False, True, True]


def test_items_count_and_a_response_may_fill_the_store(clock: Clock) -> None:
    size = OF_EACH + 100 + 2 * OF_EACH + 30
    responses = opened(size).of("k")
    responses.keep("r1", kept(bytes(100), a=bytes(10), b=bytes(20)))
    assert has(responses, "r1") == [True]
    responses.keep("r2", kept(bytes(101), a=bytes(10), b=bytes(20)))
    assert has(responses, "r1", "r2") == [True, False]
    assert responses.item("b") == bytes(20)
    responses.keep("r3", kept(bytes(100), c=bytes(10), d=bytes(20)))
    assert has(responses, "r1", "r3") == [False, True]
    assert responses.item("a") is None
    assert responses.item("d") == bytes(20)


def test_room_of_what_is_dropped_is_used_again(clock: Clock) -> None:
    responses = opened(2 * (OF_EACH + 100)).of("k")
    for number in range(20):
        responses.keep(f"r{number}", kept(bytes(100)))
    assert has(responses, "r17", "r18", "r19") == [False, True, True]
    assert responses.delete("r19")
    responses.keep("r20", kept(bytes(100)))
    assert has(responses, "r18", "r20") == [True, True]


def test_responses_and_items_expire(clock: Clock) -> None:
    responses = opened(MIB, seconds=10.0).of("k")
    responses.keep("r1", kept(a=b"1"))
    clock.now += 4
    responses.keep("r2", kept(b=b"2"))
    clock.now += 5.5
    assert has(responses, "r1", "r2") == [True, True]
    clock.now += 0.5
    assert responses.item("a") is None
    assert responses.item("b") == b"2"
    assert has(responses, "r1", "r2") == [False, True]
    assert not responses.delete("r1")
    clock.now += 4
    assert not responses.delete("r2")
    assert responses.item("b") is None


def test_expired_responses_make_room_first(clock: Clock) -> None:
    store = opened(2 * (OF_EACH + 100))
    store.of("k").keep("r1", kept(bytes(100)))
    clock.now += 10
    store.of("k").keep("r2", kept(bytes(100)))
    assert "1 responses" in repr(store)
    assert f"{OF_EACH + 100}/" in repr(store)


def test_responses_belong_to_their_key(clock: Clock) -> None:
    store = opened(MIB)
    mine, other = store.of("mine"), store.of("other")
    mine.keep("r1", kept(a=b"1"))
    assert has(other, "r1") == [False]
    assert other.item("a") is None
    assert not other.delete("r1")
    assert mine.delete("r1")
    assert not mine.delete("r1")


def test_item_is_kept_while_any_response_has_it(clock: Clock) -> None:
    store = opened(MIB)
    responses = store.of("k")
    store.of("other").keep("r0", kept(a=b"other"))
    responses.keep("r1", kept(a=b"1"))
    responses.keep("r2", kept(a=b"2", b=b"2"))
    responses.keep("r3", kept(a=b"3", b=b"3", c=b"3"))
    assert responses.item("a") == b"3"
    # The older one goes first.
    assert responses.delete("r2")
    assert [responses.item(name) for name in "abc"] == [b"3", b"3", b"3"]
    # The newest one goes: what the older one has is found there.
    assert responses.delete("r3")
    assert [responses.item(name) for name in "abc"] == [b"1", None, None]
    assert responses.delete("r1")
    assert responses.item("a") is None
    assert store.of("other").item("a") == b"other"


def test_items_of_a_deleted_response_are_those_of_the_newest_that_has_them(clock: Clock) -> None:
    responses = opened(MIB).of("k")
    for number in (1, 2, 3):
        responses.keep(f"r{number}", kept(a=b"%d" % number, **{f"own{number}": b"x"}))
    assert responses.delete("r3")
    assert responses.item("a") == b"2"
    assert responses.item("own3") is None
    assert responses.item("own2") == b"x"


def test_store_is_set_aside_of_the_memory_budget() -> None:
    memory = MemoryBudget(10 * MIB)
    store = ResponseStore(4 * MIB, 1.0, memory)
    assert memory.used == 4 * MIB
    store.close()
    assert memory.used == 0


def test_store_may_be_half_of_the_memory_budget() -> None:
    memory = MemoryBudget(10 * MIB)
    assert open_response_store(EdgeConfig(port=0), memory) is None
    config = EdgeConfig(port=0, responses_bytes=5 * MIB + 1, responses_seconds=7.0)
    with pytest.raises(ConfigError, match=r"^responses_bytes: more than half of memory_budget"):
        open_response_store(config, memory)
    assert memory.used == 0
    half = EdgeConfig(port=0, responses_bytes=5 * MIB, responses_seconds=7.0)
    store = open_response_store(half, memory)
    assert store is not None
    assert memory.used == 5 * MIB


def test_responses_are_kept_for_the_configured_time(clock: Clock) -> None:
    config = EdgeConfig(port=0, responses_bytes=MIB, responses_seconds=7.0)
    store = open_response_store(config, MemoryBudget(100 * MIB))
    assert store is not None
    store.of("k").keep("r1", kept())
    clock.now += 6.9
    assert has(store.of("k"), "r1") == [True]
    clock.now += 0.1
    assert has(store.of("k"), "r1") == [False]
