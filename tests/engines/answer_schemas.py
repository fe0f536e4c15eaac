"""Schemas of the shapes that pydantic, zod, MCP servers and OpenAI's cookbook send."""

from __future__ import annotations

from typing import Any, Final

_WORD: Final = {"type": "string", "maxLength": 6}
_DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"


def _closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# Each is strict as OpenAI defines it, so it serves as a strict tool too.
STRICT: Final[dict[str, dict[str, Any]]] = {
    "issue": {
        **_closed(a={"type": "boolean"}, b={"type": "boolean"}),
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "pydantic-nested": {
        **_closed(
            colour={"$ref": "#/$defs/Colour"},
            size={"anyOf": [{"type": "integer", "maximum": 9}, {"type": "null"}], "title": "Size"},
            place={"$ref": "#/$defs/Place", "description": "Where it is."},
        ),
        "$defs": {
            "Colour": {"enum": ["red", "green"], "title": "Colour", "type": "string"},
            "Place": _closed(city=_WORD, post={"type": ["string", "null"], "maxLength": 5}),
        },
        "title": "Thing",
    },
    "pydantic-union": {
        **_closed(
            pet={
                "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}},
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            }
        ),
        "$defs": {
            "Cat": _closed(kind={"const": "cat", "type": "string"}, lives={"enum": [7, 9]}),
            "Dog": _closed(kind={"const": "dog", "type": "string"}, barks={"type": "boolean"}),
        },
    },
    "cookbook-steps": _closed(
        steps={
            "type": "array",
            "items": _closed(explanation=_WORD, output=_WORD),
            "minItems": 1,
            "maxItems": 2,
        },
        final_answer=_WORD,
    ),
    "cookbook-recursion": _closed(
        type={"type": "string", "enum": ["div", "button"]},
        children={"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    ),
    "numbers": _closed(
        price={"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
        count={"type": "integer", "multipleOf": 5, "minimum": -20, "maximum": 100},
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 6},
        day={"type": "string", "format": "date"},
    ),
}
# Schemas that are not strict: optional properties, maps, or keywords that OpenAI refuses.
FREE: Final[dict[str, dict[str, Any]]] = {
    "zod-record": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_closed(
            scores={
                "type": "object",
                "propertyNames": {"type": "string", "enum": ["x", "y"]},
                "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
            }
        ),
    },
    "zod-draft-7": {
        "$schema": _DRAFT_7,
        "type": "object",
        "properties": {
            "pair": {
                "type": "array",
                "items": [{"type": "boolean"}, {"enum": ["l", "r"]}],
                "minItems": 2,
                "maxItems": 2,
                "additionalItems": False,
            },
            "note": {**_WORD, "default": ""},
        },
        "required": ["pair"],
        "additionalProperties": False,
    },
    "pydantic-default-tag": {
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind"},
        "type": "object",
        "$defs": {
            name: {
                "type": "object",
                "properties": {
                    "kind": {"const": name.lower(), "default": name.lower(), "type": "string"},
                    "age": {"type": "integer", "minimum": 0, "maximum": 30},
                },
                "required": ["age"],
                "additionalProperties": False,
            }
            for name in ("Cat", "Dog")
        },
    },
    "conditional": {
        "type": "object",
        "properties": {
            "kind": {"enum": ["file", "link"]},
            "size": {"type": "integer", "maximum": 9},
            "target": {**_WORD, "not": {"enum": ["", "."]}},
        },
        "required": ["kind"],
        "additionalProperties": False,
        "if": {"properties": {"kind": {"const": "link"}}},
        "then": {"required": ["target"]},
        "else": {"not": {"required": ["target"]}},
    },
    "mcp-edit": {
        "$schema": _DRAFT_7,
        "type": "object",
        "properties": {
            "path": {**_WORD, "description": "The file."},
            "dryRun": {"type": "boolean", "default": False},
            "head": {"type": "number", "minimum": 1, "maximum": 3, "multipleOf": 0.5},
        },
        "required": ["path"],
        "dependentRequired": {"head": ["dryRun"]},
    },
}
ALL: Final = STRICT | FREE
