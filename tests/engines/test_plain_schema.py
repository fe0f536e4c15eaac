"""Schemas that stay with xgrammar: what passes is enforced, and everything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar

from inference.engines.json_schema.plain import plain_fault

_BYTES = xgrammar.TokenizerInfo(
    [*(bytes([byte]) for byte in range(256)), b"</s>"], xgrammar.VocabType.RAW, stop_token_ids=[256]
)
_POINT = {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}


def _allows(schema: dict[str, Any], style: str, text: str) -> bool:
    form = {"type": "json_schema", "json_schema": schema, "style": style, "max_whitespace_cnt": 1}
    tag = json.dumps({"type": "structural_tag", "format": form})
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(_BYTES).compile_structural_tag(tag))
    return all(map(matcher.accept_token, text.encode())) and matcher.accept_token(256)


@pytest.mark.parametrize("style", ["qwen_xml", "json"])
@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, [3, 12], [2, 13, -5, 3.5]),
        ({"type": "number", "minimum": 0.5, "maximum": 2}, [0.5, 1, 1.75], [0.25, 2.5, -1]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd", ""]),
        ({"type": "string", "enum": ["a", "b"]}, ["a"], ["c"]),
        ({"enum": ["a", "b"]}, ["b"], ["c", ""]),
        ({"const": "a"}, ["a"], ["b"]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            [[1], [1, 2]],
            [[], [1, 2, 3], ["a"]],
        ),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [1, None], [True, [1], 1.5]),
        ({"type": ["integer", "null"]}, [1, None], [True, 1.5]),
        ({"$ref": "#/$defs/Point"}, [{"c": True}], [{"c": 1}, {}, 1, {"c": True, "d": 1}]),
        (
            {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]}},
            [[{"c": True}, None], []],
            [[{"c": 1}], [1]],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "a"}]),
    ],
)
def test_plain_schemas_are_enforced(
    style: str, schema: dict[str, Any], allowed: list[Any], forbidden: list[Any]
) -> None:
    whole = {
        "type": "object",
        "properties": {"a": schema},
        "required": ["a"],
        "$defs": {"Point": _POINT},
    }
    assert plain_fault(whole) is None

    def written(value: Any) -> str:
        text = json.dumps({"a": value}, separators=(",", ":"))
        if style == "json":
            return text
        raw = value if isinstance(value, str) else text[5:-1]
        return f"<parameter=a>{raw}</parameter>"

    for value in allowed:
        assert _allows(whole, style, written(value)), value
    for value in forbidden:
        assert not _allows(whole, style, written(value)), value
    assert not _allows(
        whole, style, written(allowed[0]).replace(":", ":   ").replace("=a>", "=a>   ")
    )


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "^a$"}, ".properties.a.pattern"),
        ({"type": "string", "format": "date"}, ".properties.a.format"),
        ({"type": "integer", "multipleOf": 2}, ".properties.a.multipleOf"),
        ({"allOf": [{"type": "string"}]}, ".properties.a.allOf"),
        ({"type": "string", "anyOf": [{}]}, ".properties.a.anyOf"),
        ({"$ref": "#/$defs/P", "type": "string"}, ".properties.a.$ref"),
        ({"not": {"type": "null"}}, ".properties.a.not"),
        ({"type": "integer", "enum": [1]}, ".properties.a.enum"),
        ({"type": "string", "enum": ["a", "bb"], "minLength": 2}, ".properties.a.minLength"),
        ({"type": "string", "const": "a", "maxLength": 0}, ".properties.a.maxLength"),
        ({"type": "string", "enum": ["a"], "const": "b"}, ".properties.a.enum"),
        ({"type": "object", "properties": {"b": True}}, ".properties.a.properties.b"),
        ({"type": "object", "required": ["b"]}, ".properties.a.required"),
        (
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b", "b"]},
            ".properties.a.required",
        ),
        (
            {"type": "object", "properties": {"b": {"type": "null"}}, "additionalProperties": True},
            ".properties.a.additionalProperties",
        ),
        (True, ".properties.a"),
    ],
)
def test_other_schemas_are_refused_by_their_place(schema: Any, place: str) -> None:
    fault = plain_fault({"type": "object", "properties": {"a": schema}})
    assert fault is not None
    assert fault.place == place
