"""WrongKeys: the count of wrong keys from each address."""

from __future__ import annotations

import pytest

from keys import WrongKeys
from keys.wrong_keys import MAX_ADDRESSES, MAX_WRONG, WINDOW_SECONDS


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wrong(clock: Clock) -> WrongKeys:
    return WrongKeys(clock)


def test_twenty_wrong_keys_in_a_minute_are_free_and_the_next_waits_for_its_rest(
    wrong: WrongKeys, clock: Clock
) -> None:
    assert MAX_WRONG == 20
    for _ in range(MAX_WRONG):
        assert wrong.note("192.0.2.1") == 0
        clock.now += 1
    assert wrong.note("192.0.2.1") == WINDOW_SECONDS - MAX_WRONG
    clock.now += 10
    assert wrong.note("192.0.2.1") == WINDOW_SECONDS - MAX_WRONG - 10
    clock.now = 1000.0 + WINDOW_SECONDS
    for _ in range(MAX_WRONG):
        assert wrong.note("192.0.2.1") == 0
    assert wrong.note("192.0.2.1") == WINDOW_SECONDS


def test_each_address_has_a_count_of_its_own_and_a_network_of_ipv6_has_one(
    wrong: WrongKeys,
) -> None:
    for _ in range(MAX_WRONG):
        wrong.note("192.0.2.1")
        wrong.note("2001:db8::1")
    assert wrong.note("192.0.2.1") > 0
    assert wrong.note("192.0.2.2") == 0
    assert wrong.note("2001:db8::ffff") > 0
    assert wrong.note("2001:db8:0:1::1") == 0
    assert wrong.note("::ffff:192.0.2.1") > 0  # The same host, over a socket for both.
    for odd in ("", "unix:", "fe80::1%eth0", "no address"):
        assert wrong.note(odd) == 0


def test_memory_is_bounded_and_the_oldest_address_is_forgotten_first(
    wrong: WrongKeys, clock: Clock
) -> None:
    assert MAX_ADDRESSES == 10_000
    for number in range(MAX_ADDRESSES + 5):
        wrong.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(wrong) == MAX_ADDRESSES
    clock.now += WINDOW_SECONDS
    wrong.note("192.0.2.1")
    assert len(wrong) == 1
