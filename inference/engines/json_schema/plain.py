"""The schemas of which xgrammar enforces everything.

xgrammar ignores keywords that it does not know, and known ones in the wrong company, without an
error. So this lists what it was seen to enforce, and nothing else passes.
"""

from __future__ import annotations

from typing import Any, Final

from inference.engines.json_schema.errors import Path, SchemaError
from inference.engines.json_schema.rules import ADVICE

_WHY: Final = "cannot be enforced by this model, whose tool calls are no JSON"
_WHY_FREE: Final = "cannot be enforced by this model, which writes it as any text"
_KEYWORDS: Final[dict[str, set[str]]] = {
    "object": {"properties", "required", "additionalProperties", "$defs", "definitions"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"enum", "const", "minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "boolean": set(),
    "null": set(),
}
_ALONE: Final = ("anyOf", "$ref", "enum", "const")


def plain_fault(schema: Any, path: Path = ()) -> SchemaError | None:
    """The first part of a schema that is not plain; None if all is."""
    if not isinstance(schema, dict):
        return SchemaError(path, _WHY)
    keywords = schema.keys() - ADVICE - {"$schema"}
    kind = schema.get("type")
    if len(keywords) == 1 and (key := next(iter(keywords))) in _ALONE:
        return _alone_fault(key, schema[key], (*path, key))
    if isinstance(kind, list) and keywords == {"type"}:
        return None
    # Beside one of them xgrammar ignores the other keywords.
    listed = sorted(keywords & {"const", "enum"})[:1]
    if listed and (others := sorted(keywords - {"type", *listed})):
        return SchemaError((*path, others[0]), _WHY)
    if not isinstance(kind, str):
        return SchemaError((*path, min(keywords - {"type"}, default="type")), _WHY)
    if wrong := sorted(keywords - _KEYWORDS[kind] - {"type"}):
        return SchemaError((*path, wrong[0]), _WHY)
    return _values_fault(schema, path) or _parts_fault(schema, path)


def free_fault(schema: dict[str, Any], count: int) -> SchemaError | None:
    """The first property that is not any text, if more than those would be written as any text.

    `count` is how many arguments are; the form of some models describes no more of them.
    """
    properties = schema.get("properties") or {}
    described = [
        name
        for name, part in properties.items()
        if not isinstance(part, dict)
        or part.get("type") != "string"
        or part.keys() - ADVICE - {"type"}
    ]
    if not described or count <= len(properties) - len(described):
        return None
    return SchemaError(("properties", described[0]), _WHY_FREE)


def _alone_fault(key: str, value: Any, path: Path) -> SchemaError | None:
    """A keyword that is the only one of its schema."""
    if key == "anyOf":
        return next(filter(None, (plain_fault(v, (*path, i)) for i, v in enumerate(value))), None)
    if key == "$ref":
        # Schemas in `$defs` and `definitions` are checked where they stand.
        known = value.startswith(("#/$defs/", "#/definitions/"))
        return None if known else SchemaError(path, _WHY)
    return _values_fault({key: value}, path[:-1])


def _values_fault(schema: dict[str, Any], path: Path) -> SchemaError | None:
    for key in ("enum", "const"):
        values = schema.get(key, []) if key == "enum" else [schema.get(key, "")]
        if not all(isinstance(value, str) for value in values):
            return SchemaError((*path, key), _WHY)
    return None


def _parts_fault(schema: dict[str, Any], path: Path) -> SchemaError | None:
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    if not set(required) <= set(properties) or len(set(required)) < len(required):
        return SchemaError((*path, "required"), _WHY)
    others = schema.get("additionalProperties", False)
    if others is not False and properties:
        return SchemaError((*path, "additionalProperties"), _WHY)
    parts = [((*path, "additionalProperties"), others)] if isinstance(others, dict) else []
    if "items" in schema:
        parts.append(((*path, "items"), schema["items"]))
    for key in ("properties", "$defs", "definitions"):
        parts += [((*path, key, name), part) for name, part in schema.get(key, {}).items()]
    return next(filter(None, (plain_fault(part, place) for place, part in parts)), None)
