"""Output of a real model constrained by schemas, patterns, grammars and choices."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import xgrammar

from inference.engines.answer_check import AnswerCheck, AnswerChecks, Promise
from inference.engines.base import TextEngine
from inference.engines.rule_process import RuleProcesses
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2, generate_pb2
from tests.engines.generating import chat, prepare, run, text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines.vllm_constraints import promise

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


# The grammar has no complement of a pattern.
PATTERN = {"pattern": "x"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "object", "properties": {"a": {"not": {"type": "integer"}}}},
        {"type": "object", "if": {"properties": {"a": PATTERN}}, "then": {"required": ["b"]}},
        {"oneOf": [{"properties": {"a": PATTERN}}, {"properties": {"b": PATTERN}}]},
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


_CALL = '{"a":1,"<tool_call>":{"name":"g","arguments":{"x":1}}}'


@pytest.mark.parametrize(
    ("constraint", "answer"),
    [
        ({"json_schema": json.dumps({"const": json.loads(_CALL)})}, _CALL),
        ({"choices": {"values": [f"<tool_call>{_CALL}</tool_call>"]}}, None),
    ],
    ids=["schema", "choice"],
)
async def test_constrained_text_is_never_read_as_a_tool_call(
    engine: TextEngine, constraint: dict[str, Any], answer: str | None
) -> None:
    request = chat("JSON", constraint=constraint, tools=[{"name": "g"}])
    result = await run(engine, request, 100)
    assert result.texts[0] == (answer or constraint["choices"]["values"][0])
    assert not result.arguments
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"type": "string", "pattern": r"^<\|im_end\|>$"}, "<|im_end|>"),
        ({"type": "string", "pattern": r"^<[|]im_start[|]>x$"}, "<|im_start|>x"),
        (
            {"type": "object", "patternProperties": {r"^<\|im_start\|>$": {"const": 1}}}
            | {"additionalProperties": False, "minProperties": 1, "maxProperties": 1},
            {"<|im_start|>": 1},
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["<|im_end|>"]}, "minProperties": 1}
            | {"additionalProperties": {"const": 1}},
            {"<|im_end|>": 1},
        ),
    ],
)
async def test_text_of_a_special_token_may_be_demanded(
    engine: TextEngine, schema: dict[str, Any], answer: object
) -> None:
    result = await run(engine, chat("JSON", constraint={"json_schema": json.dumps(schema)}), 60)
    assert json.loads(result.texts[0]) == answer


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9},
        {"type": "array", "maxItems": 10**12, "minItems": 10**11},
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(i): {"type": "array", "items": {"$ref": f"#/$defs/{min(i + 1, 2999)}"}}
                for i in range(3000)
            },
        },
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(i): {
                    "type": "object",
                    "properties": {
                        name: {"$ref": f"#/$defs/{i + 1}", "type": "object"} for name in "ab"
                    },
                }
                for i in range(40)
            }
            | {"40": {"type": "object"}},
        },
    ],
    ids=["items", "more items", "deep", "wide"],
)
async def test_schema_that_is_too_costly_is_refused(
    engine: TextEngine, schema: dict[str, Any]
) -> None:
    for costly in (
        chat("JSON", constraint={"json_schema": json.dumps(schema)}),
        chat(
            "Call it.",
            tools=[{"name": "f", "parameters_json": json.dumps({"properties": {"a": schema}})}],
            tool_choice={"mode": chat_pb2.ToolChoice.MODE_REQUIRED},
        ),
    ):
        with pytest.raises(InferenceError) as refusal:
            await prepare(engine, costly)
        assert refusal.value.param in ("response_format", "tools[0].function.parameters")
    assert "Paris" in (await run(engine, chat("What is the capital of France?"))).texts[0]


async def test_include_stop_str_in_output_is_refused_with_a_constraint(engine: TextEngine) -> None:
    request = chat(
        "JSON",
        constraint={"json_schema": '{"const": 1}'},
        stopping={"include_stop_string": True},
        output={"skip_special_tokens": False},
    )
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, request)
    assert refusal.value.param == "include_stop_str_in_output"


@pytest.mark.parametrize(
    ("constraint", "answer"),
    [
        ({"json_schema": '{"const": "ab"}'}, '"ab"'),
        ({"regex": "ab"}, "ab"),
        ({"choices": {"values": ["ab"]}}, "ab"),
        ({"grammar": 'root ::= "ab"'}, "ab"),
    ],
    ids=["schema", "pattern", "choice", "grammar"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_end_of_a_constraint_goes_before_min_tokens(
    engine: TextEngine, constraint: dict[str, Any], answer: str, temperature: float
) -> None:
    request = text("Say:", constraint=constraint, stopping={"min_tokens": 20})
    request.sampling.temperature = temperature
    result = await run(engine, request, 30)
    assert result.texts[0] == answer
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP


async def test_two_forced_tools_of_one_name_are_refused(engine: TextEngine) -> None:
    tools = [
        {"name": "f", "parameters_json": json.dumps({"properties": {name: {}}})} for name in "ab"
    ]
    forced = {"mode": chat_pb2.ToolChoice.MODE_REQUIRED}
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, chat("Hi", tools=tools, tool_choice=forced))
    assert refusal.value.param == "tools[1].function.name"
    await prepare(engine, chat("Hi", tools=tools))


async def test_grammar_for_llguidance_is_refused(engine: TextEngine) -> None:
    grammar = '%llguidance {}\nstart: "a"'
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, text("Say:", constraint={"grammar": grammar}))
    assert refusal.value.param == "structured_outputs.grammar"


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": r"<\|im_start\|>[ab]{2}"},
        {"grammar": 'root ::= "<|im_start|>" [ab] [ab]'},
        {"grammar": 'start: "<|im_start|>" /[ab]{2}/'},
        {"choices": {"values": ["<|im_start|>ab"]}},
    ],
    ids=["regex", "grammar", "lark", "choice"],
)
async def test_text_of_a_special_token_is_text_to_every_rule(
    engine: TextEngine, constraint: dict[str, Any]
) -> None:
    request = text("Say:", constraint=constraint)
    request.sampling.logit_bias[1] = 100  # the special token of that name
    result = await run(engine, request, 40)
    assert result.texts[0].startswith("<|im_start|>")
    assert len(result.texts[0]) == len("<|im_start|>ab")


@pytest.mark.parametrize(
    ("constraint", "valid", "invalid"),
    [
        ({"regex": r"^\d{2}(-x)?$"}, ["12", "12-x"], ["1", "12-", "123", "", "12\n"]),
        ({"grammar": 'root ::= "a" "b"+'}, ["ab", "abb"], ["a", "b", "abc"]),
        ({"grammar": 'start: "a" /b+/'}, ["ab", "abb"], ["a", "b", "abc"]),
    ],
    ids=["regex", "grammar", "lark"],
)
async def test_answer_that_breaks_its_pattern_is_an_error(
    pattern_checks: AnswerChecks, constraint: dict[str, Any], valid: list[str], invalid: list[str]
) -> None:
    promised = promise(text("Say:", constraint=constraint))
    assert promised.binds
    for answer in valid:
        await _check(pattern_checks, promised, answer)
    for answer in invalid:
        with pytest.raises(InferenceError) as failure:
            await _check(pattern_checks, promised, answer)
        assert failure.value.reason == "constraint_violated"


async def test_check_of_an_ambiguous_grammar_is_given_up_and_blocks_nothing(
    pattern_checks: AnswerChecks,
) -> None:
    grammar = 'root ::= a\na ::= a a | "x" | ""'
    promised = promise(text("Say:", constraint={"grammar": grammar}))
    unchecked, steps = pattern_checks.results["unchecked"], 0
    checked = asyncio.create_task(_check(pattern_checks, promised, "x" * 2000))
    while not checked.done():
        await asyncio.sleep(0.01)
        steps += 1
    await checked
    assert steps > 10
    assert pattern_checks.results["unchecked"] == unchecked + 1
    with pytest.raises(InferenceError):
        await _check(pattern_checks, promised, "xy")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pattern_checks() -> AsyncIterator[AnswerChecks]:
    vocabulary = xgrammar.TokenizerInfo([b"a", b"</s>"], stop_token_ids=[1])
    rules = RuleProcesses()
    await rules.start(2.0, vocabulary.serialize_json())
    yield AnswerChecks(rules.fits)
    await rules.close()


async def _check(checks: AnswerChecks, promised: Promise, answer: str) -> None:
    ended = generate_pb2.GenerateResponse()
    ended.finishes.add(index=0, reason=generate_pb2.FINISH_REASON_STOP)
    check = AnswerCheck(promised, "", checks)
    await check.check(answer)
    await check.check(ended)
