"""Spellings of JSON Schemas that generators write, as the ones that the grammar takes.

Each part keeps its path and its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from inference.engines.json_schema.patterns import conditions, respelled_pattern
from inference.engines.json_schema.rules import (
    ADVICE,
    DIALECTS,
    DRAFT_4,
    FORMATS,
    KEYWORDS,
    LISTED,
    NAMED,
    ONE_SCHEMA,
)

_FLAGS: Final = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}
_SCHEME: Final = re.compile("^https?://")
_NAMES: Final = {
    "json-schema.org/schema": next(iter(DIALECTS)),  # the latest one
    "spec.openapis.org/oas/3.1/dialect/base": next(iter(DIALECTS)),  # adds advice only
    **{_SCHEME.sub("", name): name for name in DIALECTS},
}
# The dialect before the latest one, in which `items` may be a list.
LATEST_WITH_LISTS: Final = "https://json-schema.org/draft/2019-09/schema"
# Keywords that restrict nothing, whatever their values; those that name a place stay.
_DROPPED: Final = ADVICE - {"$dynamicAnchor"}


def dialect_name(name: Any) -> Any:
    """The standard's own name of a dialect; as it is if it is none."""
    if not isinstance(name, str):
        return name
    return _NAMES.get(_SCHEME.sub("", name).rstrip("#"), name)


def respelled(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the standard's name of its dialect, and without equal ones inside.

    Without a name it is of the latest dialect, or of the one before if `items` is a list.
    """
    named = schema.get("$schema") is not None
    dialect = dialect_name(schema["$schema"]) if named else next(iter(DIALECTS))
    if not named and _has_list_of_items(schema):
        named, dialect = True, LATEST_WITH_LISTS
    out: dict[str, Any] = _respelled(schema, dialect)
    return {**out, "$schema": dialect} if named else out


def _has_list_of_items(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    found = [isinstance(node.get("items"), list)]
    _with_inner(node, lambda part: found.append(_has_list_of_items(part)))
    return any(found)


def without_nulls(node: Any) -> Any:
    """The schema without keywords that are null, as if they were not there."""
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if not _is_absent(key, value)}
    return _with_inner(kept, without_nulls)


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
    out = dict(node)
    for key, value in node.items():
        if key in NAMED and isinstance(value, dict):
            out[key] = {name: change(part) for name, part in value.items()}
        elif key in LISTED and isinstance(value, list):
            out[key] = [change(part) for part in value]
        elif key in ONE_SCHEMA:
            out[key] = change(value)
    return out


def _respelled(node: Any, dialect: Any) -> Any:
    if not isinstance(node, dict):
        return node
    out = _with_inner(_kept(node, dialect), lambda part: _respelled(part, dialect))
    _flags(out, dialect)
    if isinstance(required := out.get("required"), list):
        out["required"] = _distinct(required)
    if isinstance(node.get("pattern"), str):
        out["pattern"] = respelled_pattern(node["pattern"])
    if isinstance(patterns := out.get("patternProperties"), dict):
        named = {respelled_pattern(name): part for name, part in patterns.items()}
        # Two patterns of one meaning stay two, which is refused later.
        out["patternProperties"] = named if len(named) == len(patterns) else patterns
    return out


def _kept(node: dict[str, Any], dialect: Any) -> dict[str, Any]:
    """The keywords without advice, and without those that are null, as if they were not there."""
    return {
        key: value
        for key, value in node.items()
        if not _is_advice(key, value)
        and not _is_absent(key, value)
        and not (key == "$schema" and dialect_name(value) == dialect)
    }


def _is_advice(key: str, value: Any) -> bool:
    """Whether a keyword restricts nothing; so does a format that no grammar knows."""
    unknown = key == "format" and isinstance(value, str) and value not in FORMATS
    return unknown or key in _DROPPED


def _is_absent(key: str, value: Any) -> bool:
    return value is None and key in KEYWORDS and key not in ("const", "default")


def _flags(node: dict[str, Any], dialect: Any) -> None:
    """Writes draft 4's `exclusiveMinimum: true`, which OpenAPI 3.0 has, as later drafts do."""
    if DIALECTS.get(str(dialect)) == DRAFT_4:
        return
    for bound, flag in _FLAGS.items():
        if node.get(flag) is False:
            del node[flag]
        elif node.get(flag) is True and bound in node:
            node[flag] = node.pop(bound)


def _distinct(names: list[Any]) -> list[Any]:
    """The names, each once; another list is refused later."""
    is_list = all(isinstance(name, str) for name in names)
    return list(dict.fromkeys(names)) if is_list else names
