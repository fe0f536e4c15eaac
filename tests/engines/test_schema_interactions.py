"""Keywords of a schema that change what others mean, and spellings of what they forbid."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.engines.answer_check import AnswerCheck, AnswerChecks, Promise
from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from inference.engines.rule_process import RuleProcesses
from inference.errors import InferenceError
from isthmus.v1 import generate_pb2
from tests.engines.schema_texts import Grammar

_2019 = "https://json-schema.org/draft/2019-09/schema"
_DRAFT_7 = "http://json-schema.org/draft-07/schema#"
_DRAFT_4 = "http://json-schema.org/draft-04/schema#"
_ABOVE_ZERO = {"type": "number", "exclusiveMinimum": 0}
_PASSWORD = {
    "type": "string",
    "allOf": [{"pattern": one} for one in ("[a-z]", "[A-Z]", "[0-9]", "[!@#$%^&*]")],
    "minLength": 8,
    "maxLength": 20,
}


def _optional(count: int, letters: str) -> dict[str, Any]:
    """An object with optional properties: `count` for each letter."""
    names = [f"{letter}{number}" for letter in letters for number in range(count)]
    return {"type": "object", "properties": {name: {} for name in names}}


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        pytest.param(
            {"$schema": _2019, "items": [{"type": "boolean"}], "anyOf": [{"type": "array"}]}
            | {"additionalItems": False},
            ["[true]"],
            ["[true,1]"],
            id="items and additionalItems around an applicator",
        ),
        pytest.param(
            {"$schema": _2019, "items": [{"type": "boolean"}], "enum": [[True, 1], [True]]}
            | {"unevaluatedItems": False},
            ["[true]"],
            ["[true,1]"],
            id="items and unevaluatedItems around an enum",
        ),
        pytest.param(
            {"$schema": _DRAFT_4, "type": "integer", "maximum": 5, "allOf": [{"type": "integer"}]}
            | {"exclusiveMaximum": True},
            ["4"],
            ["5"],
            id="a flag of draft 4 behind an applicator",
        ),
        pytest.param(
            {"anyOf": [{"type": "array", "items": _ABOVE_ZERO}], "items": {"maximum": 0.5}},
            ["[0.25]", "[]"],
            ["[0]", "[0.75]"],
            id="bounds that meet in the items of an array",
        ),
        pytest.param(
            {"$ref": "#/$defs/A", "items": {"maximum": 0.5}}
            | {"$defs": {"A": {"type": "array", "items": _ABOVE_ZERO}}},
            ["[0.25]"],
            ["[0]"],
            id="bounds that meet through a reference",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": _ABOVE_ZERO}}
            | {"patternProperties": {"^a": {"maximum": 0.5}}},
            ['{"a":0.25}'],
            ['{"a":0}'],
            id="bounds that meet through a pattern of names",
        ),
        pytest.param(
            {
                "allOf": [
                    {
                        "type": "object",
                        "properties": {
                            "price": _ABOVE_ZERO,
                            "share": {"type": "number", "minimum": 0, "maximum": 0.95},
                        },
                    },
                    {"required": ["price"]},
                ]
            },
            ['{"price":0.5,"share":0}'],
            ['{"price":0}', '{"share":0.5}'],
            id="bounds of two properties do not meet",
        ),
        pytest.param(_ABOVE_ZERO, ["0.5", "1"], ["0", "-1", "0.0"], id="above zero"),
        pytest.param(
            {"type": "integer", "exclusiveMinimum": 2**40, "exclusiveMaximum": 2**40 + 2},
            [str(2**40 + 1)],
            [str(2**40), str(2**40 + 2)],
            id="large exclusive bounds",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"enum": [1]}},
            ["{}"],
            ['{"":1}'],
            id="no name is allowed",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"enum": ["p", "q"]}}
            | {"additionalProperties": {"type": "integer"}},
            ["{}", '{"q":1}', '{"p":1,"q":2}'],
            ['{"p":1,"p":2}', '{"r":1}', '{"p":"x"}', r'{"\u0072":1}'],
            id="a listed name comes once",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": {"type": "integer"}}}
            | {"propertyNames": {"enum": ["a"]}},
            ['{"a":1}', "{}"],
            ['{"a":1,', '{"b":1}'],
            id="no further name is left",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
            | {"propertyNames": {"enum": ["a", "b"]}},
            ['{"a":1}', '{"a":1,"b":[]}'],
            ['{"a":1,"c":1}', '{"b":1}'],
            id="one further name is left",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"type": "string", "enum": ["p", "q"]}}
            | {"additionalProperties": {"type": "number"}, "required": ["p", "q"]},
            ['{"p":1,"q":2}'],
            ['{"p":1}', '{"p":1,"q":2,"r":3}'],
            id="a record of zod",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"enum": ["p", "qq"], "maxLength": 1}}
            | {"additionalProperties": False},
            ["{}"],
            ['{"qq":1}', '{"p":1}'],
            id="a list of names that is restricted further",
        ),
        pytest.param(
            {"oneOf": [{"const": 1}, {"const": 2}, {"const": True}, {"enum": [None, 0.5]}]},
            ["1", "2", "true", "null", "0.5"],
            ["3", "false"],
            id="branches of numbers",
        ),
        pytest.param(
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            ["0", str(2**53), str(-(2**53))],
            [str(2**53 + 2), "0.5"],
            id="bounds of an integer of 64 bits",
        ),
        pytest.param(
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 10**12},
            ["[]", "[true,false]"],
            ["[1]"],
            id="a bound that no answer reaches",
        ),
        pytest.param(
            {"type": "object", "properties": {'"': {"type": "integer"}}}
            | {"additionalProperties": {"type": "string"}},
            [r'{"\"":1}', '{"a":"x"}'],
            [r'{"\"":"x"}', r'{"\u0022":"x"}'],
            id="a declared name with a quote",
        ),
        pytest.param(
            {"type": "object", "properties": {"v": _PASSWORD}, "required": ["v"]},
            ['{"v":"abcDEF1!"}'],
            ['{"v":"abcdefg1!"}', '{"v":"aB1!"}'],
            id="a rule for passwords",
        ),
        pytest.param(
            {"enum": ["x", "2024-01-31", 1], "format": "date", "not": {"const": 1}},
            ['"2024-01-31"'],
            ['"x"', "1"],
            id="a format of values that are looked through",
        ),
        pytest.param(
            {"enum": ["x", "2024-01-31"], "oneOf": [{"format": "date"}, {"type": "null"}]},
            ['"2024-01-31"'],
            ['"x"'],
            id="a format in a branch, of values that are looked through",
        ),
        pytest.param(
            {"enum": ["x", "y"], "format": "json-pointer", "not": {"const": "y"}},
            ['"x"'],
            ['"y"'],
            id="a format that no grammar knows, of values that are looked through",
        ),
        pytest.param(
            {"anyOf": [_optional(440, letter) for letter in "abc"]},
            ['{"a7":1}', "{}", '{"c439":[]}'],
            ['{"a7":1,"b7":1}'],
            id="many optional properties in several branches",
        ),
    ],
)
def test_grammar_enforces_keywords_together(
    schema: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    grammar = Grammar(schema)
    for text in allowed:
        assert grammar.allows(text), text
    for text in forbidden:
        assert not grammar.allows(text), text
        assert not text.endswith(",") or not grammar.begins(text), text


@pytest.mark.parametrize(
    ("pattern", "allowed", "forbidden"),
    [
        (r'^[^"]$', ["a", "\\"], ['"']),
        (r"^[^\\]$", ["a", '"'], ["\\"]),
        (r'^[^\n"]$', ["a", "\t"], ['"', "\n"]),
        (r"^[\u0000-\u001f]$", ["\u0001", "\n"], ['"', "\\", "a"]),
        (r"^[\x00-\x7F]+$", ['a"\\', "\u0001"], ["é"]),
        (r"^[^\x00-\x1f]$", ["a", '"'], ["\u0001"]),
        (r"^\P{P}$", ["a", "1"], ['"', "\\", "!"]),
        (r"^\p{Cc}$", ["\u0001", "\u007f"], ['"', "\\", "a"]),
        (r"^[\p{P}x]$", ["!", "x", '"'], ["a"]),
        (r"^[^\p{P}]$", ["a"], ["!", '"']),
        (r'^([^"a]|[^"b])$', ["a", "b"], ['"']),
        (r"^[^-a]$", ["b"], ["-", "a"]),
        (r"^[^a-]$", ["b"], ["-", "a"]),
        (r"^[^^]$", ["b"], ["^"]),
        (r"^[a^]$", ["a", "^"], ["b"]),
        (r"^\@\:\_\"$", ['@:_"'], ["@:_"]),
        (r"^\<a\>[\<]+$", ["<a><"], ["a<", "a"]),
        (r"^a{2}b{1,}c{0,1}$", ["aab", "aabbc"], ["ab", "aacc"]),
    ],
)
def test_pattern_means_what_it_means_in_ecmascript(
    pattern: str, allowed: list[str], forbidden: list[str]
) -> None:
    grammar = Grammar({"type": "string", "pattern": pattern})
    for text in allowed:
        assert any(map(grammar.allows, _spellings(text))), text
        assert grammar.validator.is_valid(text), text
    for text in forbidden:
        assert not any(map(grammar.allows, _spellings(text))), text
        assert not grammar.validator.is_valid(text), text


def _spellings(text: str) -> set[str]:
    """JSON of a text, also with every character as a number."""
    numbered = "".join(f"\\u{ord(character):04x}" for character in text)
    upper = "".join(f"\\u{ord(character):04X}" for character in text)
    return {json.dumps(text), json.dumps(text, ensure_ascii=False), f'"{numbered}"', f'"{upper}"'}


@pytest.mark.parametrize(
    ("format_", "allowed", "forbidden"),
    [
        (
            "date",
            ["2024-02-29", "2000-02-29", "2023-02-28", "2023-12-31", "0001-01-01"],
            ["2023-02-29", "1900-02-29", "2023-02-30", "2023-04-31", "0000-01-01"],
        ),
        ("date-time", ["2024-02-29T00:00:00Z"], ["2023-02-29T00:00:00Z"]),
        ("email", ["a@b.co", f"{'a' * 64}@b.co"], [f"{'a' * 65}@b.co", f"a@{'b' * 64}.co"]),
        ("email", [f"a@{'b.' * 126}c"], [f"a@{'b.' * 127}c"]),
        ("hostname", ["a-b.example.com"], ["ab--c.com", "a." * 127 + "a", f"{'b' * 64}.co"]),
    ],
)
def test_format_is_that_of_its_standard(
    format_: str, allowed: list[str], forbidden: list[str]
) -> None:
    grammar = Grammar({"type": "string", "format": format_})
    for text in allowed:
        assert grammar.allows(json.dumps(text)), text
    for text in forbidden:
        assert not grammar.allows(json.dumps(text)), text


async def test_number_of_any_length_is_checked() -> None:
    grammar = Grammar({"type": "integer", "minimum": 0, "multipleOf": 7})
    ended = generate_pb2.GenerateResponse()
    ended.finishes.add(index=0, reason=generate_pb2.FINISH_REASON_STOP)
    for digit, is_valid in (("7", True), ("1", False)):
        assert grammar.allows(digit * 5000) == is_valid
        promise = Promise(rule="json_schema", validator=grammar.validator)
        check = AnswerCheck(promise, "", AnswerChecks(RuleProcesses().fits))
        await check.check(digit * 5000)
        if is_valid:
            await check.check(ended)
        else:
            with pytest.raises(InferenceError):
                await check.check(ended)


async def test_half_of_a_character_breaks_the_promise() -> None:
    # Only the grammars of calls that are no JSON allow such an escape.
    validator = compile_schema('{"additionalProperties": {"type": "integer"}}').validator
    check = AnswerCheck(Promise("json_schema", validator), "", AnswerChecks(RuleProcesses().fits))
    await check.check(r'{"\ud83d":1}')
    ended = generate_pb2.GenerateResponse()
    ended.finishes.add(index=0, reason=generate_pb2.FINISH_REASON_STOP)
    with pytest.raises(InferenceError) as broken:
        await check.check(ended)
    assert broken.value.reason == "constraint_violated"


_NEEDS_ITSELF = {"required": ["a"], "properties": {"a": {"$ref": "#"}}}
_KIND = {"$ref": "#/definitions/S"}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"\n": {}}, "additionalProperties": True}, ".properties"),
        ({"required": ["a", "\u007f"]}, ".required"),
        ({"dependentRequired": {"a": ["\t"]}}, ".dependentRequired.a"),
        ({"pattern": "^a{1, 2}$"}, ".pattern"),
        ({"pattern": "^{$"}, ".pattern"),
        ({"pattern": r"^[^\d+--]$"}, ".pattern"),
        ({"pattern": r"^\u0000$"}, ".pattern"),
        ({"pattern": r"^[a\x00]$"}, ".pattern"),
        ({"properties": {"a": {"multipleOf": float("inf")}}}, ".properties.a.multipleOf"),
        ({"maxLength": float("inf")}, ".maxLength"),
        (
            {"properties": {"a": {"multipleOf": 2, "exclusiveMaximum": 0}}, "required": ["a"]},
            ".properties.a.multipleOf",
        ),
        (
            {"$schema": _DRAFT_7, "definitions": {"S": {"type": "string"}}}
            | {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {**_KIND, "const": name}},
                        "required": ["kind"],
                    }
                    for name in "xy"
                ]
            },
            ".oneOf",
        ),
        (
            {"$schema": _DRAFT_7, "definitions": {"S": {"type": "object"}}}
            | {
                "oneOf": [
                    {**_KIND, "type": "object", "properties": {"kind": {"const": name}}}
                    for name in "xy"
                ]
            },
            ".oneOf",
        ),
        (
            {"$schema": _DRAFT_7, "definitions": {"S": {"type": "object"}}}
            | {"oneOf": [{**_KIND, "type": "object", "required": [name]} for name in "xy"]},
            ".oneOf",
        ),
        (
            {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}},
            ".additionalProperties.$ref",
        ),
        (
            {
                "allOf": [
                    {"type": "object"},
                    {"required": ["a"], "properties": {"a": {"$ref": "#"}}},
                ]
            },
            ".allOf[1].properties.a.$ref",
        ),
        (
            {"type": "array", "allOf": [{"minItems": 1, "items": {"$ref": "#"}}]},
            ".allOf[0].items.$ref",
        ),
        ({"properties": _optional(1, "abc")["properties"], "maxProperties": 2}, ".maxProperties"),
        (
            {"anyOf": [{"type": "array", "items": {"type": "number", "multipleOf": 0.0625}}]}
            | {"items": {"multipleOf": 997}},
            ".items.multipleOf",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.4375}}}
            | {"patternProperties": {"^a": {"multipleOf": 997}}},
            ".patternProperties.^a.multipleOf",
        ),
        (
            {"prefixItems": [{"type": "array", "maxItems": 2000} for _ in range(11)]},
            ".prefixItems[10].maxItems",
        ),
    ],
)
def test_schema_is_refused_with_the_keyword_at_fault(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError) as refusal:
        compile_schema(json.dumps(schema))
    assert refusal.value.place == place
