"""Schemas as generators write them: what is harmless is accepted, and enforced."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from tests.engines.schema_texts import Grammar

_DRAFT_7 = "json-schema.org/draft-07/schema"
_LATEST = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{scheme}://{_DRAFT_7}{end}" for scheme in ("http", "https") for end in ("", "#")),
        *("http://json-schema.org/draft/2020-12/schema", f"{_LATEST}#"),
        *("http://json-schema.org/schema#", "https://json-schema.org/draft-04/schema"),
    ],
)
def test_dialect_has_several_spellings(name: str) -> None:
    grammar = Grammar({"$schema": name, "type": "object", "additionalProperties": _TEXT})
    assert grammar.allows('{"a":"x"}')
    assert not grammar.allows('{"a":1}')


def test_a_part_may_name_the_dialect_of_the_whole() -> None:
    part = {"$schema": f"{_LATEST}#", "type": "integer"}
    assert Grammar({"properties": {"a": part}, "required": ["a"]}).allows('{"a":1}')
    other = {"properties": {"a": {"$schema": f"http://{_DRAFT_7}#", "type": "integer"}}}
    with pytest.raises(SchemaError) as refusal:
        compile_schema(json.dumps(other))
    assert refusal.value.place == ".properties.a.$schema"


_LOCAL_TIME = r"^(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?)$"


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        pytest.param(
            {"type": "string", "format": "time", "pattern": _LOCAL_TIME},
            ["12:00", "23:59:59.5"],
            ["24:00", "12:00:00Z"],
            id="the local time of zod",
        ),
        pytest.param(
            {"type": "string", "format": "date-time", "pattern": "Z$"},
            ["2024-02-29T00:00:00Z"],
            ["2024-02-29T00:00:00+01:00", "Z"],
            id="a format that the pattern narrows",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^[\w-.]+$"},
            ["a-.b", "-"],
            ["a b", "`", ""],
            id="a hyphen behind a set",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^[a-\d]+$"},
            ["a-1"],
            ["b", "B"],
            id="a hyphen before a set",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^[-\w]+[\d-]$"},
            ["a-1", "a-"],
            ["ab"],
            id="hyphens at the ends of a class",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^(?=.*[a-z])(?=.*\d)(?=.*[)|])[a-z\d)|]{3,6}$"},
            ["a1|", ")b2"],
            ["ab|", "12)", "a1", "a1|a1|a"],
            id="a rule for passwords that looks ahead",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^(?=.*\W)(?=.*\D)\S{2,3}$"},
            ["aé", "٣é", "1\x85"],
            ["ab", "\ufeff-", "-"],
            id="sets behind one that looks ahead",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
            ["0", "-1.5", ".5", "+007.", "12"],
            ["", "-", "+.", ".", "1e5", "1.2.3"],
            id="a decimal of pydantic",
        ),
        pytest.param(
            {"pattern": r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)"}
            | {"type": "string"},
            ["123.45", "-0.5", "007.1000"],
            ["", "-", "+."],
            id="a decimal of pydantic with few digits",
        ),
        pytest.param(
            {"type": "string", "pattern": r"^(?=.{1,5}$)[a-z]+(?:\.[a-z]+)*$", "minLength": 2},
            ["a.b", "abcde"],
            ["a", "a..b", "abc.def"],
            id="a length that looks ahead",
        ),
        pytest.param(
            {
                "type": "string",
                "pattern": r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
                r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$",
            },
            ["P1W", "P1Y2DT3H", "PT0.5S", "P1M", "PT1H2S"],
            ["P", "PT", "P1D1M", "P1YT", "P1W2D"],
            id="the duration of zod",
        ),
        pytest.param(
            {
                "type": "string",
                "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
                r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
            },
            ["a@b.co", "a.b'c@d-e.org", "+@x.yz"],
            [".a@b.co", "a..b@c.de", "a.@b.co", "a'@b.co", "a@b", "a@-b.co"],
            id="the address of zod",
        ),
    ],
)
def test_patterns_of_generators_are_enforced(
    schema: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    Grammar(schema).check(_json(allowed), _json(forbidden))


def _json(texts: list[str]) -> list[str]:
    return [json.dumps(text, ensure_ascii=False) for text in texts]


_COLOUR = {"$ref": "#/$defs/Colour"}
_COLOURS = {"$defs": {"Colour": {"title": "Colour", "type": "string", "enum": ["r", "g", "b"]}}}


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        pytest.param(
            {"type": "array", "items": _COLOUR, "uniqueItems": True, **_COLOURS},
            ["[]", '["r"]', '["b","r","g"]'],
            ['["r","r"]', '["x"]', '["r","g","b","r"]'],
            id="a set of an enumeration, as pydantic writes it",
        ),
        pytest.param(
            {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
            ["[true,false]", "[false,true]"],
            ["[true,true]", "[true]", "[]"],
            id="booleans",
        ),
        pytest.param(
            {"type": "array", "items": {"enum": [1, True, 1.0, "1"]}, "uniqueItems": True},
            ["[1,true]", '["1",1]'],
            ["[1,1]", "[1,1.0]"],
            id="values that are equal",
        ),
        pytest.param(
            {"type": "array", "items": {"enum": list(range(30))}, "maxItems": 2}
            | {"uniqueItems": True},
            ["[29,0]"],
            ["[7,7]", "[1,2,3]"],
            id="a few of many",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": {"not": {}}, "b": _TEXT}},
            ["{}", '{"b":"x"}'],
            ['{"a":1}', '{"a":null,"b":"x"}'],
            id="a property that may not be there",
        ),
        pytest.param({"anyOf": [{"not": True}, _TEXT]}, ['"x"'], ["1"], id="a branch of nothing"),
    ],
)
def test_sets_and_nothing_are_enforced(
    schema: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    Grammar(schema).check(allowed, forbidden)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (
            {"type": "object", "properties": {"a": {"const": 5, "type": "null"}}}
            | {"required": ["a"]},
            ".properties.a.const",
        ),
        ({"not": {}}, ".not"),
        ({"type": "array", "uniqueItems": True, "items": _TEXT}, ".uniqueItems"),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": list("abcdefg")}},
            ".uniqueItems",
        ),
        (
            {"type": "array", "uniqueItems": True, "items": {"const": 1}, "minItems": 2},
            ".uniqueItems",
        ),
        ({"uniqueItems": True, "items": {"enum": ["a"]}}, ".uniqueItems"),
        ({"pattern": "^a(?=b)"}, ".pattern"),
        ({"pattern": "^(?=a)b|c$"}, ".pattern"),
        ({"type": "string", "pattern": "^(?=a$)b$"}, ".pattern"),
        (
            {"properties": {"a": {}}, "patternProperties": {"^a$": {"type": "integer"}}},
            ".patternProperties",
        ),
        (
            {"properties": {"a": {}, "b": {}}, "patternProperties": {"^[ab]$": {}, "^b$": {}}},
            ".patternProperties",
        ),
    ],
)
def test_refusal_names_the_keyword(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError) as refusal:
        compile_schema(json.dumps(schema))
    assert refusal.value.place == place


def test_pattern_properties_also_apply_to_a_declared_property() -> None:
    grammar = Grammar(
        {
            "type": "object",
            "properties": {"a": {"maximum": 5}},
            "patternProperties": {"^[ab]$": {"type": "integer"}},
        }
    )
    assert grammar.allows('{"a":5,"b":7}')
    for text in ('{"a":6}', '{"a":"x"}', '{"b":"x"}', '{"c":1}', '{"a":1,"a":1}'):
        assert not grammar.allows(text), text


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        pytest.param(
            {"$schema": None, "title": None, "description": 5, "examples": {"x": {"value": 1}}}
            | {"type": "string", "enum": None, "pattern": None, "deprecated": "yes"},
            ['"x"'],
            ["1"],
            id="null and advice in another form",
        ),
        pytest.param(
            {"type": "object", "properties": {"title": {"const": None}}, "required": ["title"] * 2}
            | {"additionalProperties": None},
            ['{"title":null}'],
            ["{}", '{"title":"x"}'],
            id="a property that is named like advice, and null that is a value",
        ),
        pytest.param(
            {"type": "integer", "minimum": 0, "exclusiveMinimum": True}
            | {"maximum": 5, "exclusiveMaximum": False},
            ["1", "5"],
            ["0", "6"],
            id="bounds of OpenAPI 3.0",
        ),
        pytest.param(
            {"type": "array", "items": [_TEXT, {"type": "integer"}], "additionalItems": False}
            | {"minItems": 2},
            ['["a",1]'],
            ["[1,1]", '["a",1,2]', '["a"]'],
            id="a tuple without a dialect",
        ),
        pytest.param(
            {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base"}
            | {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/title"}}}
            | {"required": ["a"], "components": {"schemas": {"title": {"$ref": "#/paths/a~1b"}}}}
            | {"paths": {"a/b": {"type": "string", "title": None, "maxLength": 1}}},
            ['{"a":"x"}'],
            ['{"a":1}', '{"a":"xy"}'],
            id="components of OpenAPI",
        ),
        pytest.param(
            {"type": "array", "items": {"$ref": "#/components/schemas/Node"}, "minItems": 1}
            | {
                "components": {
                    "schemas": {
                        "Node": {
                            "type": "object",
                            "properties": {"next": {"$ref": "#/components/schemas/Node"}},
                        }
                    }
                }
            },
            ["[{}]", '[{"next":{"next":{}}}]'],
            ["[]", '[{"next":1}]'],
            id="components that refer to themselves",
        ),
        pytest.param(
            {"$id": "https://a.example/x/thing.json", "$ref": "thing.json#/$defs/A"}
            | {"$defs": {"A": {"$ref": "https://a.example/x/thing.json#b"}}}
            | {"properties": {"c": {"$anchor": "b", "type": "null"}}},
            ["null"],
            ['"x"', "{}"],
            id="references by the name of the whole",
        ),
        pytest.param(
            {"$id": "https://a.example/x/", "properties": {"a": {"$ref": "part"}}}
            | {"required": ["a"], "type": "object"}
            | {"$defs": {"P": {"$id": "part", "$ref": "#/$defs/Q", "$defs": {"Q": _TEXT}}}}
            | {"definitions": {"Q": {"type": "null"}}},
            ['{"a":"x"}'],
            ['{"a":null}'],
            id="a reference within a part that has a name",
        ),
        pytest.param(
            {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://x.example/y"}
            | {"items": {"$ref": "#text"}, "type": "array"}
            | {"definitions": {"T": {"$id": "#text", "type": "string"}}},
            ['["a"]'],
            ["[1]"],
            id="a name of draft 7",
        ),
        pytest.param(
            {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 3}}
            | {"uniqueItems": True, "minItems": 1},
            ["[1]", "[3,1,2]"],
            ["[]", "[1,1]", "[4]"],
            id="integers that differ",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"format": "decimal"}},
            ['{"a":1}'],
            ["1"],
            id="a format of names that no grammar knows",
        ),
        pytest.param(
            {"type": "array", "items": {"enum": list("abcdef")}, "uniqueItems": True},
            ["[]", '["f","a"]'],
            ['["a","a"]', '["g"]'],
            id="a set of six",
        ),
    ],
)
def test_spellings_of_generators_are_enforced(
    schema: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    grammar = Grammar(schema)
    grammar.check(allowed, forbidden)
    for text in forbidden:
        assert not grammar.validator.is_valid(json.loads(text)), text


_ALPHABET = "aB1_ -é\n\u00a0."


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\bfoo\b", r"^\ba\b", r"a\b$", r"\b(a|B1)\b", r"\b[a-c]+\b", r"^\w+\b", r"\ba.*B\b"),
        *(
            r"\b(?:a|B)1\b",
            r"\b\d{1,2}",
            r"^(?!\s*$).+",
            r"^(?!\s*$)",
            r"(?!\s*$).+",
            r"^(?!\s+$)",
        ),
        *(r"^(?!\s)[aB ]+$", "^(?! ).*$", "^(?P<first>a)(?P<second>B)$", r"^(?!\s*$)[a ]{2}$"),
    ],
)
def test_pattern_means_what_it_means_to_another_engine(pattern: str) -> None:
    grammar = Grammar({"type": "string", "pattern": pattern, "maxLength": 6})
    # Python's sets are ECMA-262's for ASCII, and its end of the text is `\Z`.
    reference = re.compile(pattern.replace(r"\s", "[\\s\u00a0]").replace("$", r"\Z"), re.ASCII)
    chance = random.Random(pattern)
    texts = ["foo", "a foo b", "afoo", "éfoo", "foo_", "a", "aB", "a1", "B1", " a", "", " ", "\n"]
    texts += ["".join(chance.choices(_ALPHABET, k=chance.randint(0, 6))) for _ in range(400)]
    for text in texts:
        if len(text) <= 6:
            expected = reference.search(text) is not None
            assert grammar.allows(json.dumps(text, ensure_ascii=False)) == expected, text
            assert grammar.validator.is_valid(text) == expected, text


@pytest.mark.parametrize(
    "pattern",
    [r"a\b|b", r"\b-a", r"\b.a", r"\ba*", r"\b(a|-)b", r"a\b.", r"(?:a|-)\b", r"\s\b", r"\x20\b"],
)
def test_word_boundary_that_is_not_next_to_a_word_is_refused(pattern: str) -> None:
    with pytest.raises(SchemaError):
        compile_schema(json.dumps({"type": "string", "pattern": pattern}))


@pytest.mark.parametrize(
    ("name", "allowed", "forbidden"),
    [
        (
            "date",
            ["2024-02-29", "1999-12-31", "2023-04-30"],
            ["2023-02-29", "2023-04-31", "0000-01-01"],
        ),
        (
            "uuid",
            ["f47ac10b-58cc-4372-a567-0e02b2c3d479"],
            ["f47ac10b58cc4372a5670e02b2c3d479", "x"],
        ),
    ],
)
def test_format_of_names_is_enforced(name: str, allowed: list[str], forbidden: list[str]) -> None:
    grammar = Grammar(
        {"propertyNames": {"format": name}, "additionalProperties": {"type": "integer"}}
        | {"type": "object"}
    )
    for text in allowed:
        assert grammar.allows(f'{{"{text}":1}}'), text
    for text in (*forbidden, "", "a"):
        assert not grammar.allows(f'{{"{text}":1}}'), text
