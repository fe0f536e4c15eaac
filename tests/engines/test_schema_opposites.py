"""Schemas that exclude values: `not`, `if`, overlapping `oneOf`, unevaluated properties."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from tests.engines.schema_texts import Grammar, spellings

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _kind(name: str, *required: str, **properties: Any) -> dict[str, Any]:
    return _object(*required, kind={"const": name, "type": "string"}, **properties)


_KINDS = _object("kind", kind={"enum": ["a", "b", "c"]}, x=_NUMBER, y=_TEXT)
_PET = {
    "Cat": _kind("cat", "lives", lives=_NUMBER),
    "Dog": _kind("dog", "barks", barks=_NUMBER),
    "Fish": _kind("fish", "kind"),
}


def _if(condition: Any, then: Any = True, otherwise: Any = True) -> dict[str, Any]:
    return {"if": condition, "then": then, "else": otherwise}


def _is(*values: Any, required: bool = False) -> dict[str, Any]:
    tested = {"const": values[0]} if len(values) == 1 else {"enum": list(values)}
    return {"properties": {"kind": tested}} | ({"required": ["kind"]} if required else {})


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        pytest.param(
            _KINDS | _if(_is("a"), {"required": ["x"]}, {"required": ["y"]}),
            [{"kind": "a", "x": 1}, {"kind": "b", "y": "t"}, {"kind": "a", "x": 1, "y": "t"}],
            [{"kind": "a", "y": "t"}, {"kind": "b", "x": 1}, {"kind": "c"}, {"kind": "a"}],
            id="if over a discriminator",
        ),
        pytest.param(
            _KINDS
            | {
                "allOf": [
                    _if(_is(kind, required=True), {"required": [name]})
                    for kind, name in (("a", "x"), ("b", "y"))
                ]
            },
            [{"kind": "a", "x": 1}, {"kind": "b", "y": "t"}, {"kind": "c"}],
            [{"kind": "a"}, {"kind": "b", "x": 1}, {"x": 1}, {"kind": "d"}],
            id="an if for each value",
        ),
        pytest.param(
            _object(kind={}, x=_NUMBER)
            | {
                "allOf": [
                    _if(_is("a", 1), {"required": ["x"]}, {"properties": {"x": False}}),
                    _if(_is("a"), {"properties": {"x": {"minimum": 5}}}),
                    _if(_is(True, required=True), {"properties": {"z": False}}, {}),
                ]
            },
            [{"kind": "a", "x": 5}, {"kind": 1, "x": 5}, {"x": 7, "z": 1}, {"kind": "b"}],
            [{"kind": "a", "x": 4}, {"kind": 1}, {"x": 2}, {}, {"kind": True, "z": 1}],
            id="conditions that overlap, of a property that may be absent",
        ),
        pytest.param(
            {"type": "string"} | _if({"maxLength": 2}, {"pattern": "^a"}, {"pattern": "z$"}),
            ["a", "ab", "bcz"],
            ["b", "bc", "abc", ""],
            id="if of a text",
        ),
        pytest.param(
            _object("a", a=_TEXT) | _if({"required": ["b"]}, {"properties": {"b": _NUMBER}}),
            [{"a": "x"}, {"a": "x", "b": 1}],
            [{"a": "x", "b": "y"}, {"b": 1}],
            id="if of a property that is there",
        ),
        pytest.param(
            {"type": "string", "not": {"enum": ["x", "ab", "", 5]}},
            ["y", "a", "abc", "xx", "\n"],
            ["x", "ab", ""],
            id="not some texts",
        ),
        pytest.param(
            {"type": "number", "not": {"enum": [1, 2.5]}, "maximum": 9},
            [0, 2, 2.25, 9],
            [1, 2.5, 10],
            id="not some numbers",
        ),
        pytest.param(
            {"enum": ["x", "y", 1, None], "not": {"type": ["string", "null"], "pattern": "^[^y]"}},
            ["y", 1],
            ["x", "z", None],
            id="not some values of an enumeration",
        ),
        pytest.param(
            {"not": {"type": ["null", "object"]}, "maxLength": 1},
            ["", "a", 1, 0.5, True, [1]],
            [None, {}, "ab"],
            id="not some types",
        ),
        *(
            pytest.param({"type": kind, "not": bound}, allowed, forbidden, id=f"not {bound}")
            for kind, bound, allowed, forbidden in (
                ("string", {"minLength": 2}, ["", "a"], ["ab", "abc"]),
                ("string", {"maxLength": 1}, ["ab", "abc"], ["", "a"]),
                ("array", {"minItems": 2}, [[], [1]], [[1, 2]]),
                ("array", {"maxItems": 0}, [[1], [1, 2]], [[]]),
                ("integer", {"minimum": 5}, [4, -9], [5, 6]),
                ("integer", {"maximum": 5}, [6, 9], [5, 4]),
                ("integer", {"exclusiveMinimum": 5}, [5, 4], [6]),
                ("integer", {"exclusiveMaximum": 5}, [5, 6], [4]),
                ("boolean", {"const": True}, [False], [True]),
            )
        ),
        pytest.param(
            _object(a=_NUMBER, b=_NUMBER) | {"not": {"required": ["a", "b"]}},
            [{"a": 1}, {"b": 1}, {}],
            [{"a": 1, "b": 1}, {"a": "x"}],
            id="not both properties",
        ),
        pytest.param(
            _object(a=_NUMBER, b=_NUMBER)
            | {"not": {"anyOf": [{"required": ["a"]}, {"properties": {"b": {"minimum": 5}}}]}},
            [{"b": 4}],
            [{}, {"b": 5}, {"a": 1, "b": 4}],
            id="not any of two",
        ),
        pytest.param(
            {"type": "string", "not": {"not": {"minLength": 2}}, "maxLength": 3},
            ["ab", "abc"],
            ["a", "abcd"],
            id="not not",
        ),
        pytest.param(
            _object(a=_NUMBER, b=_TEXT) | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": "x"}],
            [{}, {"a": 1, "b": "x"}, {"a": "x"}],
            id="one of two properties",
        ),
        pytest.param(
            {"oneOf": [_object("a", a=_NUMBER), _object("b", b=_NUMBER), {"type": "null"}]},
            [{"a": 1}, {"b": 1}, None],
            [{"a": 1, "b": 1}, {}, {"a": "x"}],
            id="one of two objects",
        ),
        pytest.param(
            {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in _PET], "$defs": _PET}
            | {"discriminator": {"propertyName": "kind"}},
            [{"kind": "cat", "lives": 9}, {"kind": "dog", "barks": 1}, {"kind": "fish"}],
            [{"kind": "cat", "barks": 1}, {"lives": 9, "barks": 1}, {}],
            id="a tag with a default, as pydantic writes it",
        ),
        pytest.param(
            {"$defs": _PET}
            | {
                "oneOf": [
                    {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
                    {"$ref": "#/$defs/Fish"},
                ]
            },
            [{"kind": "cat", "lives": 9}, {"kind": "fish"}],
            [{"kind": "cat"}, {"kind": "bird"}],
            id="a union of unions, as pydantic writes it",
        ),
        pytest.param(
            {"oneOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "string", "maxLength": 2}]},
            ["c", "ab", ""],
            ["a", "b", "abc"],
            id="one of a list and all texts",
        ),
        pytest.param(
            _object(a=_NUMBER)
            | {"allOf": [{"$ref": "#/$defs/B"}], "unevaluatedProperties": False}
            | {"$defs": {"B": _object("b", b=_TEXT)}},
            [{"a": 1, "b": "x"}, {"b": "x"}],
            [{"a": 1}, {"b": "x", "c": 1}, {"b": 1}],
            id="closed around a base",
        ),
        pytest.param(
            {"$ref": "#/$defs/B", "unevaluatedProperties": False, **_object(a=_NUMBER)}
            | {"$defs": {"B": {"allOf": [_object(b=_TEXT), {"properties": {"c": _TEXT}}]}}},
            [{"a": 1}, {"a": 1, "b": "x", "c": "y"}, {}],
            [{"d": 1}, {"c": 1}],
            id="closed around a reference",
        ),
        pytest.param(
            {"unevaluatedProperties": False, "properties": {"id": _NUMBER}}
            | {"oneOf": [_kind("a", "kind", x=_NUMBER), _kind("b", "kind", y=_TEXT)]},
            [{"id": 1, "kind": "a", "x": 1}, {"kind": "b", "y": "t"}],
            [{"kind": "a", "y": "t"}, {"kind": "b", "x": 1}, {"kind": "a", "z": 1}],
            id="closed around branches",
        ),
        pytest.param(
            {"allOf": [_object(a=_NUMBER) | {"additionalProperties": _TEXT}]}
            | {"unevaluatedProperties": False},
            [{"a": 1, "b": "x"}, {"c": "y", "b": "x"}],
            [{"b": 1}, {"a": "x"}],
            id="nothing is left unevaluated",
        ),
    ],
)
def test_grammar_enforces(schema: dict[str, Any], allowed: list[Any], forbidden: list[Any]) -> None:
    grammar = Grammar(schema)
    reference = jsonschema.Draft202012Validator(schema)
    for value in allowed:
        assert reference.is_valid(value), value
        assert any(map(grammar.allows, spellings(value))), value
    for value in forbidden:
        assert not reference.is_valid(value), value
        assert not any(map(grammar.allows, spellings(value))), value


@pytest.mark.parametrize("count", [12, 60])
def test_many_conditions_on_one_property_make_no_combinations(count: int) -> None:
    names = [f"k{number}" for number in range(count)]
    schema = _object("kind", kind={"enum": names}, **{f"p{name}": _NUMBER for name in names})
    schema["allOf"] = [_if(_is(name), {"required": [f"p{name}"]}) for name in names]
    grammar = Grammar(schema)
    assert grammar.allows('{"kind":"k3","pk3":1}')
    assert not grammar.allows('{"kind":"k3","pk4":1}')


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {"items": _TEXT}}, ".not"),
        ({"allOf": [{"not": {"properties": {"a": {"format": "date"}}}}]}, ".allOf[0].not"),
        (_if({"properties": {"a": {"pattern": "^x"}}}, {"required": ["b"]}), ".if"),
        (_if({"const": {"a": 1}}), ".if"),
        (_if(True, {"not": {"pattern": "a"}}), ".then.not"),
        ({"oneOf": [{"type": "array", "items": _TEXT}, {"type": "array"}]}, ".oneOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ".oneOf"),
        ({"oneOf": [{"type": "string", "pattern": str(n)} for n in range(50)]}, ".oneOf"),
    ],
)
def test_what_has_no_opposite_is_refused_with_its_place(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError) as refusal:
        compile_schema(json.dumps(schema))
    assert refusal.value.place == place
