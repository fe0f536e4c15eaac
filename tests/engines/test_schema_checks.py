"""Answers whose check would take years are checked in bounded time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from inference.engines.answer_check import AnswerCheck, AnswerChecks, Promise
from inference.engines.json_schema.visits import safe_depth
from inference.engines.rule_process import RuleProcesses
from inference.errors import InferenceError
from isthmus.v1 import generate_pb2
from tests.engines.schema_texts import Grammar


def _tree(count: int) -> dict[str, Any]:
    """Pairs in pairs, each of which has two branches with the same inner pair."""
    levels: dict[str, Any] = {"0": {"const": 0}}
    for number in range(count):
        inner = {"$ref": f"#/$defs/{number}"}
        pairs = [
            {"type": "array", "prefixItems": [inner, {"const": end}], "items": False, "minItems": 2}
            for end in (0, 1)
        ]
        levels[str(number + 1)] = {"anyOf": pairs}
    return {"$ref": f"#/$defs/{count}", "$defs": levels}


def _text(count: int, end: int = 1) -> str:
    return "[" * count + "0" + f",{end}]" * count


@pytest_asyncio.fixture
async def rules() -> AsyncIterator[RuleProcesses]:
    started = RuleProcesses()
    await started.start(1.0, "")
    yield started
    await started.close()


async def _check(checks: AnswerChecks, promise: Promise, text: str) -> None:
    ended = generate_pb2.GenerateResponse()
    ended.finishes.add(index=0, reason=generate_pb2.FINISH_REASON_STOP)
    check = AnswerCheck(promise, "", checks)
    await check.check(text)
    await check.check(ended)


async def test_answer_whose_check_does_not_end_passes_and_is_counted_and_blocks_nothing(
    rules: RuleProcesses, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    grammar = Grammar(_tree(60))
    assert grammar.allows(_text(60))
    promise = Promise(rule="json_schema", validator=grammar.promised)
    checks = AnswerChecks(rules.fits)
    steps = 0
    checked = asyncio.create_task(_check(checks, promise, _text(60)))
    while not checked.done():
        await asyncio.sleep(0.01)
        steps += 1
    await checked
    assert steps > 1
    assert checks.results == {"valid": 0, "broken": 0, "unchecked": 1}
    assert "took too long" in caplog.text
    await _check(checks, Promise(rule="json_object"), "{}")
    assert checks.results == {"valid": 1, "broken": 0, "unchecked": 1}


async def test_deep_answer_is_checked_in_another_process(rules: RuleProcesses) -> None:
    promise = Promise(rule="json_schema", validator=Grammar(_tree(12)).promised)
    checks = AnswerChecks(rules.fits)
    await _check(checks, promise, _text(12))
    with pytest.raises(InferenceError):
        await _check(checks, promise, _text(12, end=2))
    await _check(checks, promise, _text(12, end=0))
    assert checks.results == {"valid": 2, "broken": 1, "unchecked": 0}


async def test_check_that_never_gets_its_turn_is_given_up(
    rules: RuleProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.engines.rule_process._CHECK_WAIT_SECONDS", 0.2)
    slow = json.dumps(_tree(60))
    first, second = await asyncio.gather(
        rules.fits("schema", slow, [_text(60)]), rules.fits("schema", "{}", ["1"])
    )
    assert (first, second) == (None, None)
    monkeypatch.undo()
    assert await rules.fits("schema", "{}", ["1"])


_EXPRESSION = {
    "anyOf": [
        {"type": "integer"},
        *(
            {
                "type": "object",
                "properties": {"left": {"$ref": "#"}, "kind": {"const": kind}},
                "required": ["left", "kind"],
            }
            for kind in ("plus", "minus")
        ),
    ]
}


@pytest.mark.parametrize(
    ("schema", "is_safe"),
    [
        ({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}, True),
        ({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}, True),
        (
            {"properties": {"left": {"$ref": "#"}}, "patternProperties": {"^l": {"$ref": "#"}}},
            False,
        ),
        (
            {
                "$anchor": "x",
                "anyOf": [{"items": {"$ref": "#x"}}, {"prefixItems": [{"$ref": "#x"}]}],
            },
            False,
        ),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"const": n} for n in range(4000)]}}},
            True,
        ),
        ({"contains": {"$ref": "#/contains"}, "minContains": 0}, True),
        ({"properties": {"$ref": {}}, "const": {"$ref": {"allOf": 1}}}, True),
        (_EXPRESSION, False),
        (_tree(3), True),
        (_tree(60), False),
    ],
)
def test_depth_is_bounded_where_each_level_doubles_the_visits(
    schema: dict[str, Any], is_safe: bool
) -> None:
    depth = safe_depth(json.loads(json.dumps(schema)))
    assert depth is None if is_safe else depth is not None and 3 < depth < 12
