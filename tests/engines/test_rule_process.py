"""Patterns are compiled in a process that can be ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import xgrammar

from inference.engines.rule_process import RuleProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

# Takes seconds: a state for each repetition, and each is compared with all tokens.
SLOW = '[^"]{1,500}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def probe() -> AsyncIterator[RuleProcess]:
    """No test uses a rule of another: a rule that has passed is not compiled again."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"w%d w%d w%d" % (number, number, number) for number in range(30_000)]
    vocabulary = xgrammar.TokenizerInfo([*tokens, b"</s>"], stop_token_ids=[len(tokens)])
    started = RuleProcess(0.5, vocabulary.serialize_json())
    await started.start()
    yield started
    await started.close()


@pytest.mark.parametrize(
    ("kind", "text"),
    [("regex", "[a-z]{1,9}"), ("grammar", 'root ::= "a"'), ("lark", 'start: "a"')],
)
async def test_pattern_passes_if_its_compilation_ends(
    probe: RuleProcess, kind: str, text: str
) -> None:
    assert await probe.ends(kind, text)


async def test_pattern_that_does_not_compile_passes_and_is_left_to_the_engine(
    probe: RuleProcess,
) -> None:
    assert await probe.ends("regex", "(")
    assert await probe.ends("grammar", "x")


async def test_pattern_whose_compilation_does_not_end_fails_and_the_next_one_passes(
    probe: RuleProcess,
) -> None:
    assert not await probe.ends("regex", SLOW)
    assert await probe.ends("regex", "a+")
    assert not await probe.ends("regex", SLOW)


async def test_cancelled_check_leaves_no_response_for_the_next_one(probe: RuleProcess) -> None:
    check = asyncio.create_task(probe.ends("regex", SLOW))
    await asyncio.sleep(0.1)
    check.cancel()
    await asyncio.wait({check})
    assert not await probe.ends("regex", SLOW)
    assert await probe.ends("regex", "b+")


def _chain(length: int) -> str:
    """A schema whose definitions refer to one another in a row."""
    steps = {
        str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(length)
    }
    return json.dumps({"$ref": "#/$defs/0", "$defs": {**steps, str(length): {"type": "null"}}})


async def test_schema_that_would_end_the_process_fails_and_the_next_one_passes() -> None:
    probe = RuleProcess()
    await probe.start()
    try:
        assert await probe.ends("schema", '{"type": "object"}')
        assert await probe.ends("schema", '{"not": {}}'), "it is refused elsewhere, with its place"
        assert await probe.ends("schema", _chain(200))
        assert not await probe.ends("schema", _chain(3000)), "the stack overflows"
        assert await probe.ends("schema", '{"type": "array"}')
    finally:
        await probe.close()


async def test_process_that_runs_out_of_memory_writes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    probe = RuleProcess(30.0)
    wide = {
        str(i): {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{i + 1}", "type": "object"} for name in "ab"},
        }
        for i in range(40)
    }
    schema = {"$ref": "#/$defs/0", "$defs": {**wide, "40": {"type": "object"}}}
    try:
        assert not await probe.ends("schema", json.dumps(schema))
    finally:
        await probe.close()
    assert capfd.readouterr().err == ""
