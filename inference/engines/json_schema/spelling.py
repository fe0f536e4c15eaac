"""Spellings of JSON Schemas that generators write, as the ones that the grammar takes.

Each part keeps its path and its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from inference.engines.json_schema.patterns import conditions, respelled_pattern
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


def without_lookahead(node: Any) -> Any:
    """The schema with each `(?=…)` that begins a pattern as a pattern of its own."""
    if not isinstance(node, dict):
        return node
    out = _with_inner(node, without_lookahead)
    if isinstance(node.get("pattern"), str):
        *more, out["pattern"] = conditions(node["pattern"])
        if more:
            out["allOf"] = [*out.get("allOf", ()), *({"pattern": one} for one in more)]
    return out


def _with_inner(node: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A schema with all schemas in it changed."""
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in _VALUES:
            out[key] = value
        elif key in _MAPS and isinstance(value, dict):
            out[key] = {name: change(part) for name, part in value.items()}
        elif isinstance(value, list):
            out[key] = [change(part) for part in value]
        else:
            out[key] = change(value)
    return out


def _respelled(node: Any, dialect: Any) -> Any:
    if not isinstance(node, dict):
        return node
    kept = {
        key: value
        for key, value in node.items()
        if not (key == "$schema" and dialect_name(value) == dialect)
    }
    out = _with_inner(kept, lambda part: _respelled(part, dialect))
    if isinstance(node.get("pattern"), str):
        out["pattern"] = respelled_pattern(node["pattern"])
    if isinstance(patterns := out.get("patternProperties"), dict):
        named = {respelled_pattern(name): part for name, part in patterns.items()}
        # Two patterns of one meaning stay two, which is refused later.
        out["patternProperties"] = named if len(named) == len(patterns) else patterns
    return out
