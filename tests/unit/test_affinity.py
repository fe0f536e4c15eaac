"""Which replica a request of a key gets: a pure function of the key and of the calls in flight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from edge.upstream.affinity import choose, key_of
from isthmus.v1.chat_pb2 import ChatInput, ChatMessage, ContentPart, Role
from isthmus.v1.generate_pb2 import GenerateRequest, TokenIds

SYSTEM, DEVELOPER = Role.ROLE_SYSTEM, Role.ROLE_DEVELOPER
USER, ASSISTANT = Role.ROLE_USER, Role.ROLE_ASSISTANT
KEYS = [f"{n:016}".encode() for n in range(600)]
LONG = "x" * 5000
EIGHT = [(SYSTEM, str(n)) for n in range(8)]


@dataclass
class Replica:
    address: str
    outstanding: int = 0
    engine: str = ""

    def __post_init__(self) -> None:
        self.engine = self.engine or self.address


def replicas(count: int) -> list[Replica]:
    return [Replica(f"ipv4:10.0.0.{n}:50051") for n in range(count)]


def first(key: bytes, among: list[Replica]) -> str:
    return choose(key, among)[0].address


def chat(*messages: tuple[Any, ...]) -> GenerateRequest:
    """A chat of messages of a role and the texts of its parts."""
    made = [
        ChatMessage(role=role, parts=[ContentPart(text=text) for text in texts])
        for role, *texts in messages
    ]
    return GenerateRequest(chat=ChatInput(messages=made))


def text(prompt: str, **members: Any) -> GenerateRequest:
    return GenerateRequest(text=prompt, **members)


def ids(*values: int) -> GenerateRequest:
    return GenerateRequest(token_ids=TokenIds(ids=values))


# The replica for a key


@pytest.mark.parametrize("count", [2, 3, 10])
def test_keys_are_spread_evenly_and_each_keeps_its_replica(count: int) -> None:
    among = replicas(count)
    firsts = [first(key, among) for key in KEYS]
    assert firsts == [first(key, among[::-1]) for key in KEYS]
    shares = Counter(firsts)
    assert len(shares) == count
    # Six standard deviations of a fair spread.
    deviation = (len(KEYS) * (count - 1)) ** 0.5 / count
    assert all(abs(n - len(KEYS) / count) < 6 * deviation for n in shares.values())


def test_a_replica_that_is_removed_moves_only_its_own_keys() -> None:
    among = replicas(4)
    gone = among[1].address
    rest = [replica for replica in among if replica.address != gone]
    moved: Counter[str] = Counter()
    for key in KEYS:
        before, after = first(key, among), first(key, rest)
        if before == gone:
            moved[after] += 1
        else:
            assert after == before
    # They do not all fall on one of the others.
    assert len(moved) == 3
    assert min(moved.values()) > 20


def test_a_replica_that_is_added_takes_keys_for_itself_only() -> None:
    among = replicas(4)
    for key in KEYS:
        assert first(key, among) in (first(key, among[:3]), among[3].address)


@pytest.mark.parametrize(
    ("busy", "others", "stays"),
    [
        # ceil(1.25 x mean, this call included) + 1 is what a replica may have with this call.
        (1, [0], True),  # 3
        (4, [0], True),  # 5
        (5, [0], False),  # 5
        (5, [1], True),  # 6
        (6, [1], False),  # 6
        (7, [4], True),  # 9
        (8, [4], True),  # 10
        (10, [4], True),  # 11
        (11, [4], False),  # 11
        (2, [0, 0], True),  # 3
        (3, [0, 0], False),  # 3
        (9, [6, 6], True),  # 11
        (13, [6, 6], False),  # 12
        (50, [50, 50], True),
    ],
)
def test_a_busy_replica_is_passed_over(busy: int, others: list[int], stays: bool) -> None:
    key, among = KEYS[0], replicas(1 + len(others))
    chosen, is_first = choose(key, among)
    assert is_first
    chosen.outstanding = busy
    rest = [replica for replica in among if replica is not chosen]
    for replica, calls in zip(rest, others, strict=True):
        replica.outstanding = calls
    again, is_first = choose(key, among)
    assert is_first == stays == (again is chosen)
    if not stays:
        assert again.address == first(key, [Replica(r.address) for r in rest])


def test_a_key_goes_to_the_least_busy_replica_of_its_engine() -> None:
    among = [
        Replica(f"ipv4:10.0.0.{engine}:{port}", engine=str(engine))
        for engine in range(3)
        for port in range(4)
    ]
    engines = set()
    for key in KEYS[:20]:
        chosen, _ = choose(key, among)
        engines.add(chosen.engine)
        used = []
        for _ in range(4):
            replica, is_first = choose(key, among)
            assert is_first
            assert replica.engine == chosen.engine
            replica.outstanding += 1
            used.append(replica.address)
        assert len(set(used)) == 4
        for replica in among:
            replica.outstanding = 0
    assert engines == {"0", "1", "2"}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_hot_key_uses_four_fifths_of_the_replicas_and_none_is_far_above_the_mean(
    count: int,
) -> None:
    among = replicas(count)
    for calls in range(1, 200):
        chosen, _ = choose(KEYS[1], among)
        chosen.outstanding += 1
        assert chosen.outstanding <= 1.25 * calls / count + 2
    assert sum(replica.outstanding > 0 for replica in among) >= 0.8 * count


# The key of a request


SAME = {
    "later turns of a conversation": (
        chat((SYSTEM, "s"), (USER, "a")),
        chat((SYSTEM, "s"), (USER, "a"), (ASSISTANT, "b"), (USER, "c")),
    ),
    "later turns without instructions": (
        chat((USER, "a")),
        chat((USER, "a"), (ASSISTANT, "b"), (USER, "c")),
    ),
    "later turns after a greeting": (
        chat((SYSTEM, "s"), (ASSISTANT, "hi"), (USER, "a")),
        chat((SYSTEM, "s"), (ASSISTANT, "hi"), (USER, "a"), (ASSISTANT, "b")),
    ),
    "messages after 4,096 characters": (
        chat((USER, "x" * 4096 + "a")),
        chat((USER, "x" * 4096 + "b")),
    ),
    "prompts after 1,024 characters": (text("x" * 1024 + "a"), text("x" * 1024 + "b")),
    "ids after 256": (ids(*[7] * 256, 1), ids(*[7] * 256, 2)),
    "the ninth message": (chat(*EIGHT, (USER, "a")), chat(*EIGHT, (USER, "b"))),
    "the fifth part": (chat((USER, "a", "b", "c", "d", "e")), chat((USER, "a", "b", "c", "d"))),
    "other parameters": (text("a", model="x"), text("a", model="y", request_id="z")),
}
DIFFERENT = {
    "first messages": (chat((USER, "a")), chat((USER, "b"))),
    "instructions": (chat((SYSTEM, "s"), (USER, "a")), chat((SYSTEM, "t"), (USER, "a"))),
    "instructions of the application": (
        chat((SYSTEM, "s"), (DEVELOPER, "d"), (USER, "a")),
        chat((SYSTEM, "s"), (DEVELOPER, "e"), (USER, "a")),
    ),
    "messages after long instructions": (
        chat((SYSTEM, LONG), (USER, "a")),
        chat((SYSTEM, LONG), (USER, "b")),
    ),
    "bounds of messages": (chat((SYSTEM, "ab"), (USER, "c")), chat((SYSTEM, "a"), (USER, "bc"))),
    "prompts": (text("a"), text("b")),
    "messages before 4,096 characters": (
        chat((USER, "x" * 4095 + "a")),
        chat((USER, "x" * 4095 + "b")),
    ),
    "prompts before 1,024 characters": (text("x" * 1023 + "a"), text("x" * 1023 + "b")),
    "ids": (ids(1, 2), ids(12)),
    "ids before 256": (ids(*[7] * 255, 1), ids(*[7] * 255, 2)),
    "the eighth message": (chat(*EIGHT[1:], (USER, "a")), chat(*EIGHT[1:], (USER, "b"))),
    "the fourth part": (chat((USER, "a", "b", "c", "d")), chat((USER, "a", "b", "c"))),
    "salts": (text("a", cache_salt="s"), text("a", cache_salt="t")),
    "salts before 64 bytes": (
        text("a", cache_salt="x" * 63 + "s"),
        text("a", cache_salt="x" * 63 + "t"),
    ),
}


@pytest.mark.parametrize("one", SAME)
def test_same_key(one: str) -> None:
    left, right = SAME[one]
    assert key_of(left, None) == key_of(right, None) != b""


@pytest.mark.parametrize("one", DIFFERENT)
def test_different_keys(one: str) -> None:
    left, right = DIFFERENT[one]
    assert key_of(left, None) != key_of(right, None)


@pytest.mark.parametrize(
    "request_",
    [
        text(""),
        GenerateRequest(),
        chat((USER, "")),
        text("", cache_salt="s"),
    ],
    ids=["empty prompt", "none", "empty message", "salt"],
)
def test_no_beginning_no_key(request_: GenerateRequest) -> None:
    assert key_of(request_, None) == b""
    assert key_of(request_, lambda: "") == b""


def test_what_the_client_says_comes_before_the_beginning() -> None:
    one, other = chat((USER, "a")), chat((USER, "b"))
    assert key_of(one, lambda: "k") == key_of(other, lambda: "k")
    assert key_of(one, lambda: "k") != key_of(one, lambda: "l")
    assert key_of(one, lambda: "") == key_of(one, None)


def test_a_long_salt_is_a_part_of_the_key() -> None:
    salt = "ä" * 256
    assert key_of(text("a", cache_salt=salt), None) not in (b"", key_of(text("a"), None))


def test_a_header_that_is_not_utf_8_is_a_key() -> None:
    assert key_of(text("a"), lambda: "\udce4") != key_of(text("a"), lambda: "\udce5")
