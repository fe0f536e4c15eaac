"""The schemas of which xgrammar enforces everything.

xgrammar ignores keywords that it does not know, and known ones in the wrong company, without an
error. So this is a list of what it was seen to enforce, and nothing else passes: objects with
declared properties, arrays, enumerations of texts, and the simple types.
"""

from __future__ import annotations

from typing import Any, Final

from inference.engines.json_schema_rewriting import Path, SchemaError
from inference.engines.json_schema_rules import ADVICE

_WHY: Final = "cannot be enforced by this model, whose tool calls are no JSON"
_KEYWORDS: Final = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items"},
    "string": {"enum"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
}


def plain_fault(schema: Any, path: Path = ()) -> SchemaError | None:
    """The first part of a schema that is not plain; None if all is."""
    if not isinstance(schema, dict):
        return SchemaError(path, _WHY)
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        return SchemaError((*path, "type"), _WHY)
    for key in schema.keys() - ADVICE - {"type", "$schema"}:
        if key not in _KEYWORDS[kind]:
            return SchemaError((*path, key), _WHY)
    if not all(isinstance(value, str) for value in schema.get("enum", ())):
        return SchemaError((*path, "enum"), _WHY)
    if schema.get("additionalProperties", False) is not False:
        return SchemaError((*path, "additionalProperties"), _WHY)
    properties = schema.get("properties", {})
    if not set(schema.get("required", ())) <= set(properties):
        return SchemaError((*path, "required"), _WHY)
    for name, inner in properties.items():
        if fault := plain_fault(inner, (*path, "properties", name)):
            return fault
    return plain_fault(schema["items"], (*path, "items")) if "items" in schema else None
