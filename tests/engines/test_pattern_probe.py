"""Patterns are compiled in a process that can be ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import xgrammar

from inference.engines.pattern_probe import PatternProbe

pytestmark = pytest.mark.timeout(600)

# Takes seconds: a state for each repetition, and each is compared with all tokens.
SLOW = '[^"]{1,500}'


@pytest_asyncio.fixture
async def probe() -> AsyncIterator[PatternProbe]:
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"w%d w%d w%d" % (number, number, number) for number in range(30_000)]
    vocabulary = xgrammar.TokenizerInfo([*tokens, b"</s>"], stop_token_ids=[len(tokens)])
    started = PatternProbe(vocabulary.serialize_json(), 0.5)
    await started.start()
    yield started
    await started.close()


@pytest.mark.parametrize(
    ("kind", "text"),
    [("regex", "[a-z]{1,9}"), ("grammar", 'root ::= "a"'), ("lark", 'start: "a"')],
)
async def test_pattern_passes_if_its_compilation_ends(
    probe: PatternProbe, kind: str, text: str
) -> None:
    assert await probe.ends(kind, text)


async def test_pattern_that_does_not_compile_passes_and_is_left_to_the_engine(
    probe: PatternProbe,
) -> None:
    assert await probe.ends("regex", "(")
    assert await probe.ends("grammar", "x")


async def test_pattern_whose_compilation_does_not_end_fails_and_the_next_one_passes(
    probe: PatternProbe,
) -> None:
    assert not await probe.ends("regex", SLOW)
    assert await probe.ends("regex", "a+")
    assert not await probe.ends("regex", SLOW)


async def test_cancelled_check_leaves_no_response_for_the_next_one(probe: PatternProbe) -> None:
    check = asyncio.create_task(probe.ends("regex", SLOW))
    await asyncio.sleep(0.1)
    check.cancel()
    await asyncio.wait({check})
    assert not await probe.ends("regex", SLOW)
    assert await probe.ends("regex", "b+")
