"""Output of a real model constrained by schemas, patterns, grammars and choices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inference.engines.base import TextEngine
from inference.errors import InferenceError
from isthmus.v1 import generate_pb2
from tests.engines.generating import chat, prepare, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_output_follows_the_json_schema(engine: TextEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    constraint = {"json_schema": json.dumps(schema)}
    request = chat("Describe Tom as JSON.", constraint=constraint, sampling={"temperature": 1.5})
    result = await run(engine, request, 128)
    answer = json.loads(result.texts[0])
    assert list(answer) == ["name", "age"]
    assert isinstance(answer["age"], int)
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP


async def test_output_follows_regex_grammar_and_json_object(engine: TextEngine) -> None:
    pattern = await run(engine, text("A year:", constraint={"regex": "(19|20)[0-9]{2}"}))
    assert pattern.texts[0].isdigit()
    assert len(pattern.texts[0]) == 4
    grammar = await run(engine, text("Say:", constraint={"grammar": 'root ::= "a" "b"+ "c"'}), 8)
    assert grammar.texts[0].startswith("ab")
    some = await run(engine, chat("One JSON object.", constraint={"json_object": True}), 200)
    if some.finishes[0].reason == generate_pb2.FINISH_REASON_STOP:
        assert isinstance(json.loads(some.texts[0]), dict)
    assert some.texts[0].startswith("{")


async def test_json_object_that_is_false_constrains_nothing(engine: TextEngine) -> None:
    request = chat("Hello", constraint={"json_object": False})
    request.sampling.logit_bias[2] = 100  # the end-of-text token
    result = await run(engine, request)
    assert not result.texts.get(0)
    assert result.finishes[0].end_of_text


@pytest.mark.parametrize(
    "constraint",
    [
        {"json_schema": "{"},
        {"json_schema": '{"type": "nonsense"}'},
        {"json_schema": "[" * 5000},
        {"regex": "("},
        {"grammar": "root ::= unknown"},
    ],
    ids=["not-json", "no-type", "deep", "regex", "grammar"],
)
async def test_invalid_constraint_is_refused_and_the_engine_stays_alive(
    engine: TextEngine, constraint: dict[str, Any]
) -> None:
    with pytest.raises(InferenceError) as refusal:
        await run(engine, chat("Hi", constraint=constraint), 8)
    assert refusal.value.reason == "invalid_value"
    wanted = "response_format" if "json_schema" in constraint else "structured_outputs"
    assert refusal.value.param == wanted
    assert engine.health().alive
    assert "Paris" in (await run(engine, chat("What is the capital of France?"))).texts[0]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "object", "properties": {"a": {"not": {"type": "integer"}}}},
        {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {"oneOf": [{"minimum": 3}, {"maximum": 5}]},
        {"type": "string", "pattern": "("},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}},
    ],
    ids=["uniqueItems", "not", "if", "oneOf", "pattern", "ref"],
)
@pytest.mark.parametrize("tools", [False, True], ids=["", "with-tools"])
async def test_schema_that_no_grammar_can_express_is_refused(
    engine: TextEngine, schema: dict[str, Any], tools: bool
) -> None:
    constraint = {"json_schema": json.dumps(schema)}
    offered = [{"name": "get_time"}] if tools else []
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, chat("Hi", constraint=constraint, tools=offered))
    assert (refusal.value.reason, refusal.value.param) == ("invalid_value", "response_format")


async def test_schema_with_references_and_unicode_holds_for_every_choice(
    engine: TextEngine,
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "größe": {"$ref": "#/$defs/P"},
            "東": {"type": "array", "items": {"$ref": "#/$defs/P"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["größe", "東"],
        "additionalProperties": False,
        "$defs": {"P": {"enum": ["klein 🦩", None, 3]}},
    }
    request = chat(
        "JSON",
        constraint={"json_schema": json.dumps(schema)},
        output={"n": 2},
        sampling={"temperature": 1.5, "seed": 1},
    )
    result = await run(engine, request, 96)
    for index in range(2):
        answer = json.loads(result.texts[index])
        assert list(answer) == ["größe", "東"]
        assert answer["größe"] in ("klein 🦩", None, 3)


async def test_compiling_a_huge_schema_does_not_block_the_event_loop(engine: TextEngine) -> None:
    properties = {
        f"p{i}": {"type": "string", "pattern": "^[a-z]{1,40}(foo|bar)+[0-9]{2,30}$"}
        for i in range(400)
    }
    schema = json.dumps({"type": "object", "properties": properties})
    request = chat("Hi", constraint={"json_schema": schema})
    loop = asyncio.get_running_loop()
    began = loop.time()
    task = asyncio.create_task(prepare(engine, request))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    await task
    assert turns > 50, f"the event loop was blocked for most of {loop.time() - began:.3f} s"
