"""Spellings of JSON Schemas that generators write, as the ones that the grammar takes.

Each part keeps its path and its meaning.
"""

from __future__ import annotations

import re
from typing import Any, Final

from inference.engines.json_schema.patterns import respelled_pattern
from inference.engines.json_schema.rules import DIALECTS

_SCHEME: Final = re.compile("^https?://")
_NAMES: Final = {
    "json-schema.org/schema": next(iter(DIALECTS)),  # the latest one
    **{_SCHEME.sub("", name): name for name in DIALECTS},
}
# Keywords whose values are no schemas, and those with a schema for each name.
_VALUES: Final = frozenset({"const", "enum", "default", "examples"})
_MAPS: Final = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)


def dialect_name(name: Any) -> Any:
    """The standard's own name of a dialect; as it is if it is none."""
    if not isinstance(name, str):
        return name
    return _NAMES.get(_SCHEME.sub("", name).rstrip("#"), name)


def respelled(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the standard's name of its dialect, and without equal ones inside."""
    dialect = dialect_name(schema.get("$schema", next(iter(DIALECTS))))
    out: dict[str, Any] = _respelled(schema, dialect)
    return out if "$schema" not in schema else {**out, "$schema": dialect}


def _respelled(node: Any, dialect: Any) -> Any:
    if isinstance(node, list):
        return [_respelled(inner, dialect) for inner in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "$schema" and dialect_name(value) == dialect:
            continue
        if key in _VALUES:
            out[key] = value
        elif key in _MAPS and isinstance(value, dict):
            out[key] = _each(key, value, dialect)
        elif key == "pattern" and isinstance(value, str):
            out[key] = respelled_pattern(value)
        else:
            out[key] = _respelled(value, dialect)
    return out


def _each(key: str, schemas: dict[str, Any], dialect: Any) -> dict[str, Any]:
    named = key == "patternProperties"
    parts = {
        respelled_pattern(name) if named else name: _respelled(part, dialect)
        for name, part in schemas.items()
    }
    # Two patterns of one meaning stay two, which is refused later.
    if len(parts) < len(schemas):
        return {name: _respelled(part, dialect) for name, part in schemas.items()}
    return parts
