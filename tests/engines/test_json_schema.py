"""The grammars of JSON Schemas, without a model: what they allow fits the schema."""

from __future__ import annotations

import collections
import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from inference.engines.answer_check import fits
from inference.engines.json_schema import rules
from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from tests.engines.official_suite import official_cases, official_suite
from tests.engines.random_schemas import SchemaWriter
from tests.engines.schema_texts import Grammar, spellings


@pytest.fixture(scope="session")
def suite() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return official_suite(cache / "isthmus")


def test_no_invalid_instance_of_the_official_suite_passes(suite: Path) -> None:
    wrong, counts = [], collections.Counter[str]()
    missed: set[str] = set()
    nameless: list[str] = []
    for file, case in official_cases(suite):
        if not isinstance(case["schema"], dict):
            continue
        try:
            grammar = Grammar(case["schema"])
        except SchemaError as error:
            counts["refused"] += 1
            nameless += [case["description"]] if not error.path else []
            continue
        counts["accepted"] += 1
        for test in case["tests"]:
            passes = any(map(grammar.allows, spellings(test["data"])))
            counts[f"{'valid' if test['valid'] else 'invalid'}, {passes}"] += 1
            if passes and not test["valid"]:
                wrong.append((file, case["description"], test["description"]))
            elif test["valid"] and not passes:
                missed.add(file)
    assert not wrong
    assert not nameless, "these refusals name no keyword"
    assert counts["accepted"] > 280, counts
    assert counts["invalid, False"] > 360, counts
    assert counts["valid, True"] > 20 * counts["valid, False"], counts
    # Documented: other properties, the order of properties, formats that are advice to the
    # suite, and numbers in one form.
    narrower = {"additionalProperties", "properties", "anyOf", "format", "not"}
    assert missed <= narrower | {"const", "enum", "type", "float-overflow", "bignum"} | {
        "unevaluatedProperties"
    }


@pytest.mark.parametrize(
    ("draft", "dialect", "least"),
    [
        ("draft2019-09", "https://json-schema.org/draft/2019-09/schema", 290),
        ("draft7", "http://json-schema.org/draft-07/schema#", 230),
        ("draft6", "http://json-schema.org/draft-06/schema#", 205),
        ("draft4", "http://json-schema.org/draft-04/schema#", 150),
    ],
)
def test_no_invalid_instance_of_an_earlier_draft_passes(
    suite: Path, draft: str, dialect: str, least: int
) -> None:
    accepted = 0
    for file, case in official_cases(suite, draft):
        # Of draft 7, whose validators may read encoded texts; here the encoding is advice.
        if not isinstance(case["schema"], dict) or file == "content":
            continue
        try:
            grammar = Grammar(case["schema"] | {"$schema": dialect})
        except SchemaError:
            continue
        accepted += 1
        for test in case["tests"]:
            passes = any(map(grammar.allows, spellings(test["data"])))
            assert test["valid"] or not passes, (file, case["description"], test["data"])
    assert accepted > least


@pytest.mark.parametrize("block", range(8))
def test_texts_of_random_schemas_are_valid(block: int) -> None:
    texts = 0
    for seed in range(block * 60, block * 60 + 60):
        schema = SchemaWriter(seed).root()
        chance = random.Random(seed)
        try:
            grammar = Grammar(schema)
        except SchemaError:
            continue
        for _ in range(8):
            if (text := grammar.write(chance)) is None:
                continue
            texts += 1
            assert fits(text, grammar.validator), (seed, json.dumps(schema), text)
    assert texts > 40


_CLOSED = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}}


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        (
            _CLOSED
            | {"additionalProperties": False, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            ['{"a":true}', '{"b":false}', '{"a":true,"b":true}'],
            ["{}", '{"id":1}', '{"a":1}'],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "additionalProperties": {},
            },
            ['{"a":1}', '{"b":"x"}', '{"a":1,"":null}'],
            [r'{"\u0061":"x"}', '{"a":"x"}', '{"a":1,"a":"x"}'],
        ),
        (
            {"properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            ['{"ab":null}', '{"a":1}', '{"abc":1}', '{"":1}', '{"b":1}'],
            ['{"ab":1}', '{"a":null}', r'{"a\u0062":1}'],
        ),
        (
            _CLOSED | {"dependentRequired": {"a": ["b"]}},
            ["{}", '{"b":true}', '{"a":true,"b":true}'],
            ['{"a":true}'],
        ),
        ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
        (
            {"$ref": "#/$defs/T", "maxLength": 2, "$defs": {"T": {"type": "string"}}},
            ['"ab"'],
            ['"abc"', "1"],
        ),
        ({"type": "integer", "multipleOf": 3}, ["3", "0", "300"], ["4", "3.5"]),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ['"aa"'], ['"aaaa"', '"b"']),
        (
            {"type": "object", "propertyNames": {"enum": ["x", "y"]}},
            ['{"x":1}', '{"x":1,"y":[]}', "{}"],
            ['{"z":1}', r'{"\u0078":1}'],
        ),
        ({"type": "string", "format": "no-such"}, ['"any"'], ["1"]),
        ({"type": "string", "pattern": "^.$"}, ['"a"', '"🦩"'], ['"\\n"', '"\u2028"', '""']),
        ({"type": "string", "pattern": r"^\S$"}, ['"a"'], ['"\ufeff"', '" "']),
        ({"type": "string", "pattern": "^[a[]$"}, ['"a"', '"["'], ['"]"', '"[]"']),
        ({"const": "a\u0000"}, [r'"a\u0000"'], ['"a"']),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[]", "[1]"], ["[1,1]"]),
        (
            {
                "$schema": "https://json-schema.org/draft/2019-09/schema",
                "type": "array",
                "items": [{"type": "boolean"}],
                "unevaluatedItems": False,
            },
            ["[]", "[true]"],
            ["[1]", "[true,1]"],
        ),
        (
            {
                "$schema": "http://json-schema.org/draft-04/schema#",
                "type": "integer",
                "maximum": 5,
                "exclusiveMaximum": True,
            },
            ["4"],
            ["5"],
        ),
        ({"type": "string", "format": "time"}, ['"23:59:59Z"'], ['"12:00:60Z"']),
        (
            {"type": "string", "format": "date-time", "pattern": "Z$"},
            ['"2024-02-29T23:59:59Z"'],
            ['"2024-02-29T12:00:60Z"', '"2024-02-29T12:00:00+01:00"'],
        ),
        (
            {
                "anyOf": [{"$ref": "#/$defs/a%2525b"}, {"$ref": "#/$defs/c~1d~0"}],
                "$defs": {"a%25b": {"const": "x"}, "c/d~": {"const": "y"}},
            },
            ['"x"', '"y"'],
            ['"z"'],
        ),
        ({"oneOf": [{"const": f"k{i}"} for i in range(2000)]}, ['"k1999"'], ['"k2000"']),
        (
            {"unevaluatedProperties": False, "properties": {"a": {"type": "null"}}},
            ['{"a":null}'],
            ['{"b":1}'],
        ),
        (
            {
                "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}],
                "$defs": {
                    name: {
                        "type": "object",
                        "properties": {"kind": {"const": name}},
                        "required": ["kind"],
                    }
                    for name in "CD"
                },
            },
            ['{"kind":"C"}', '{"kind":"D"}'],
            ['{"kind":"E"}', "{}"],
        ),
    ],
)
def test_grammar_enforces(schema: dict[str, Any], allowed: list[str], forbidden: list[str]) -> None:
    Grammar(schema).check(allowed, forbidden)


_TEXT = {"type": "string"}
_DRAFT_4 = "http://json-schema.org/draft-04/schema#"
_DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"not": {"pattern": "^a"}}}}, ".properties.a.not"),
        ({"not": {"type": "integer"}}, ".not"),
        ({"items": {"if": {"pattern": "^a"}, "then": _TEXT}}, ".items.if"),
        ({"items": {"if": {"$ref": "#/$defs/D"}, "else": {}}, "$defs": {"D": {}}}, ".items.if"),
        ({"$defs": {"D": {"contains": _TEXT}}}, ".$defs.D.contains"),
        ({"type": "array", "uniqueItems": True}, ".uniqueItems"),
        ({"anyOf": [_TEXT, {"$dynamicRef": "#x"}]}, ".anyOf[1].$dynamicRef"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, ".oneOf"),
        ({"$schema": _DRAFT_4, "oneOf": [{"minimum": 1}, {"maximum": 5}]}, ".oneOf"),
        ({"$schema": _DRAFT_4, "not": {"enum": [1]}}, ".not"),
        ({"allOf": [{"$ref": "#/$defs/missing"}]}, ".allOf[0].$ref"),
        ({"$ref": "https://example.com/schema"}, ".$ref"),
        ({"type": "nonsense"}, ".type"),
        ({"required": "a"}, ".required"),
        ({"properties": {"a": {"pattern": "("}}}, ".properties.a.pattern"),
        ({"pattern": "(?i)a"}, ".pattern"),
        ({"patternProperties": {"^a": _TEXT, "b$": _TEXT}}, ".patternProperties"),
        ({"patternProperties": {"^a": {}}, "additionalProperties": _TEXT}, ".additionalProperties"),
        ({"minProperties": 2, "additionalProperties": _TEXT}, ".minProperties"),
        ({"type": "integer", "minimum": 2**60}, ".minimum"),
        ({"enum": [2**64]}, ".enum"),
        ({"propertyNames": {"format": "uri"}}, ".propertyNames"),
        (
            {"unevaluatedProperties": False, "allOf": [{"patternProperties": {"^a": {}}}]},
            ".unevaluatedProperties",
        ),
        ({"unevaluatedProperties": _TEXT, "allOf": [{}]}, ".unevaluatedProperties"),
        (
            {"unevaluatedProperties": False, "anyOf": [{}], "oneOf": [{}]},
            ".unevaluatedProperties",
        ),
        ({"unevaluatedItems": False, "allOf": [{"items": _TEXT}]}, ".unevaluatedItems"),
        ({"$schema": "https://example.com/meta"}, ".$schema"),
        ({"$schema": {"a": 1}, "type": "string"}, ".$schema"),
        ({"properties": {"a": {"$schema": "x"}}}, ".properties.a.$schema"),
        ({"$recursiveRef": "#"}, ".$recursiveRef"),
        ({"type": "array", "minItems": 100_000, "items": _TEXT}, ".minItems"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "..."),
        ({"x-guidance": {"lenient": True}, "not": {}}, ".not"),
        ({"patternProperties": {r"\d": _TEXT, "[0-9]": {}}}, ".patternProperties"),
        ({"pattern": "^[]a]$"}, ".pattern"),
        ({"pattern": "^[^]a]$"}, ".pattern"),
        (
            {"oneOf": [{"items": {"$ref": "#/allOf/0"}}], "allOf": [{"type": "array"}]},
            ".oneOf[0].items.$ref",
        ),
        ({"properties": {"a": {"$ref": "#/enum/0"}}, "enum": [{}]}, ".properties.a.$ref"),
        (
            {
                "$defs": {"a%25b": _TEXT, "a%b": {"type": "integer"}},
                "oneOf": [{"$ref": "#/$defs/a%25b"}, {"type": "integer"}],
            },
            ".oneOf",
        ),
        (
            {"items": {"$anchor": "a"}, "$defs": {"D": {"$anchor": "a"}}, "not": {"$ref": "#a"}},
            ".not.$ref",
        ),
        (
            {
                "items": {"$ref": "a"},
                "$defs": {name: {"$id": "a", "type": "null"} for name in "AB"},
            },
            ".items.$ref",
        ),
        (
            {"items": {"$ref": "#/$defs/A"}}
            | {"$defs": {"A": _TEXT, "B": {"$id": "", "$defs": {"A": {"type": "null"}}}}},
            ".items.$ref",
        ),
        ({"items": {"contains": {"$ref": "#b"}, "minContains": 0}}, ".items.contains.$ref"),
        ({"items": {"if": {"$ref": "https://example.com/schema"}}}, ".items.if.$ref"),
        ({"type": "array", "enum": [{"a": 1}], "const": [1], "maxItems": 0}, "..."),
        (
            {"items": {"$id": "inner", "$ref": "#/$defs/D"}, "$defs": {"D": _TEXT}},
            ".items.$ref",
        ),
        (
            {"items": {"$ref": "#/components/A"}, "components": {"A": {"not": {"pattern": "a"}}}},
            ".components.A.not",
        ),
        ({"$schema": _DRAFT_4, "items": {"id": "inner"}, "not": {}}, ".not"),
        (
            {
                "$schema": _DRAFT_4,
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"k": {"const": name}},
                        "required": ["k"],
                    }
                    for name in "xy"
                ],
            },
            ".oneOf[0].properties.k.const",
        ),
        ({"properties": {f"p{i}": {} for i in range(520)}}, ".properties"),
        ({"type": "integer", "exclusiveMinimum": 2**53}, ".exclusiveMinimum"),
        ({"exclusiveMinimum": 5, "exclusiveMaximum": 3, "type": "integer"}, "..."),
        ({"$ref": "#"}, ".$ref"),
        ({"$anchor": "a", "allOf": [{"$ref": "#a"}]}, ".allOf[0].$ref"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, ".anyOf[1].$ref"),
        ({"items": {"$ref": "#/items"}}, ".items.$ref"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            ".properties.a.$ref",
        ),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, ".items.$ref"),
        (
            {"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
            ".additionalProperties.$ref",
        ),
        (
            {
                "$schema": _DRAFT_4,
                "properties": {"a": {}},
                "propertyNames": {"maximum": 1, "exclusiveMaximum": True},
            },
            ".propertyNames",
        ),
        ({"propertyNames": {"$ref": "#name"}}, ".propertyNames.$ref"),
        ({"propertyNames": {"$ref": "#/$defs/missing"}}, ".propertyNames.$ref"),
        (
            {"propertyNames": {"anyOf": [{"$ref": "#"}]}, "additionalProperties": False},
            ".propertyNames",
        ),
        (
            {
                "properties": {"a": {}},
                "additionalProperties": False,
                "propertyNames": {"anyOf": [{"format": "uuid"}]},
            },
            ".propertyNames",
        ),
        ({"$schema": _DRAFT_7, "contains": _TEXT, "minContains": 0}, ".contains"),
        ({"type": "integer", "multipleOf": 1_000_003}, ".multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]}, ".allOf[1].multipleOf"),
        (
            {"$ref": "#/$defs/M", "multipleOf": 997, "$defs": {"M": {"multipleOf": 991}}},
            ".$defs.M.multipleOf",
        ),
        ({"oneOf": [{"enum": [i, [i]]} for i in range(4000)]}, ".oneOf"),
    ],
)
def test_refusal_names_the_keyword_and_its_path(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError) as refusal:
        compile_schema(json.dumps(schema))
    if place == "...":
        assert refusal.value.path
    else:
        assert refusal.value.place == place


@pytest.mark.parametrize(
    ("draft", "later"),
    [
        (_DRAFT_7, {"$defs": []}),
        (_DRAFT_7, {"$defs": {"a": {"pattern": 5}}}),
        (_DRAFT_7, {"dependentRequired": {"a": [{}]}}),
        (_DRAFT_4, {"propertyNames": 5}),
    ],
)
def test_keywords_of_later_drafts_need_their_form(draft: str, later: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="no valid JSON Schema") as refusal:
        compile_schema(json.dumps({"$schema": draft, "type": "object", **later}))
    assert refusal.value.path[0] == next(iter(later))


_NEEDS_ITSELF = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/N"}},
    "required": ["a"],
    "additionalProperties": False,
}
_DEFINED = {"$defs": {"N": _NEEDS_ITSELF}}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#"}, ".$ref"),
        ({"$ref": "#/$defs/N"} | _DEFINED, ".$ref"),
        ({"anyOf": [{"$ref": "#/$defs/N"}, _TEXT]} | _DEFINED, ".$defs.N.properties.a.$ref"),
        ({"properties": {"b": {"$ref": "#/$defs/N"}}} | _DEFINED, ".$defs.N.properties.a.$ref"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, ".items.$ref"),
        (
            {"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}},
            ".additionalProperties.$ref",
        ),
        (
            {"$anchor": "n", **_NEEDS_ITSELF, "properties": {"a": {"$ref": "#n"}}},
            ".properties.a.$ref",
        ),
        (
            {
                "$ref": "#/$defs/A",
                "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"allOf": [{"$ref": "#/$defs/A"}]}},
            },
            ".$defs.A.$ref",
        ),
    ],
)
def test_reference_without_an_end_is_refused(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError, match="without an end") as refusal:
        compile_schema(json.dumps(schema))
    assert refusal.value.place == place


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "array", "items": {"$ref": "#"}}, "[[],[[]]]"),
        (_NEEDS_ITSELF | {"required": []} | {"$defs": {"N": {"$ref": "#"}}}, '{"a":{"a":{}}}'),
        ({"type": "object", "additionalProperties": {"$ref": "#"}}, '{"x":{}}'),
        (
            _NEEDS_ITSELF | {"type": ["object", "null"], "$defs": {"N": {"$ref": "#"}}},
            '{"a":{"a":null}}',
        ),
        (
            _NEEDS_ITSELF | {"$defs": {"N": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
            '{"a":{"a":null}}',
        ),
        (
            {"prefixItems": [{"type": "null"}], "items": {"$ref": "#"}, "minItems": 1},
            "[null,[null]]",
        ),
        (
            {"$ref": "#/$defs/0"}
            | {"$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(40)} | {"40": _TEXT}},
            '"x"',
        ),
    ],
)
def test_recursion_that_may_end_is_accepted(schema: dict[str, Any], text: str) -> None:
    assert Grammar(schema).allows(text)


def test_deep_schemas_are_refused() -> None:
    for depth in (70, 5000):
        with pytest.raises(SchemaError):
            compile_schema('{"items":' * depth + "{}" + "}" * depth)


def test_every_keyword_of_the_standard_is_in_exactly_one_table() -> None:
    keywords: set[str] = set()
    for part in Draft202012Validator.META_SCHEMA["allOf"]:
        resource = Draft202012Validator({})._resolver.lookup(
            f"https://json-schema.org/draft/2020-12/{part['$ref']}"
        )
        keywords |= resource.contents["properties"].keys()
    tables = [rules.ENFORCED, rules.IN_SOME_FORMS.keys(), rules.REFUSED, rules.ADVICE]
    assert keywords == set().union(*tables)
    assert sum(map(len, tables)) == len(keywords), "a keyword is in one table only"


@pytest.mark.parametrize("keyword", sorted(rules.ADVICE))
def test_advice_changes_nothing(keyword: str) -> None:
    advice: Any = {"examples": [], "contentSchema": {"not": {}}, "$vocabulary": {}}.get(keyword)
    if advice is None:
        advice = keyword in ("deprecated", "readOnly", "writeOnly") or "a"
    plain = {"type": "object", "properties": {"a": _TEXT}}
    schema = json.dumps(plain | {keyword: advice})
    assert json.loads(compile_schema(schema).grammar_schema) == json.loads(
        compile_schema(json.dumps(plain)).grammar_schema
    )


_JUNK: list[Any] = [
    *(None, True, 0, -1, 1.5, "", "a", "#", "#/$defs/P", "x#y", "http://[", "%zz", 2**70),
    *([], [None], ["a", "a"], [{}], {}, {"a": 1}, {"$ref": "#"}, {"$id": "q"}, {"a": None}),
]
_KEYWORDS = sorted(rules.KEYWORDS | {"components"})


def _parts(node: Any) -> list[dict[str, Any]]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = [part for value in inner for part in _parts(value)]
    return [node, *found] if isinstance(node, dict) else found


def test_schema_with_any_value_at_any_place_is_accepted_or_refused() -> None:
    refused = 0
    for seed in range(1500):
        chance = random.Random(seed)
        schema = json.loads(json.dumps(SchemaWriter(seed % 300).root()))
        for _ in range(2):
            value = copy.deepcopy(chance.choice(_JUNK))
            chance.choice(_parts(schema))[chance.choice(_KEYWORDS)] = value
        try:
            compile_schema(json.dumps(schema))
        except SchemaError as error:
            refused += error.place != ""
    assert refused > 500
