"""Schemas of a few values, and arrays whose items differ, as lists of all their values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, Final

import jsonschema_rs

from inference.engines.json_schema.names import is_plain
from inference.engines.json_schema.rules import ADVICE

# With twice as many the grammar stops in the middle of an answer.
_MOST_ARRAYS: Final = 2000
_MOST_INTEGERS: Final = 100
_READ: Final = frozenset({"type", "enum", "const", "minimum", "maximum"})
_OTHERS: Final = frozenset({"prefixItems", "additionalItems", "unevaluatedItems", "enum", "const"})


def unique_arrays(node: dict[str, Any], items: Any) -> list[list[Any]] | None:
    """All arrays that a schema with `uniqueItems` allows; None if they are too many to list.

    `items` is the schema of the items, without a reference.
    """
    values = _scalars(items)
    if values is None or node.get("type") != "array" or not _OTHERS.isdisjoint(node):
        return None
    least, most = int(node.get("minItems", 0)), int(min(node.get("maxItems", 100), len(values)))
    lengths = range(least, most + 1)
    if sum(math.perm(len(values), length) for length in lengths) > _MOST_ARRAYS:
        return None
    return [list(array) for n in lengths for array in itertools.permutations(values, n)]


def with_valid_values(node: dict[str, Any], dialect: Any) -> dict[str, Any]:
    """A schema with `enum` or `const` as the list of those values that obey all of it.

    It is returned as it is if it has references.
    """
    if not is_plain(node):
        return node
    whole = node if dialect is None else {**node, "$schema": dialect}
    values = [node["const"]] if "const" in node else node["enum"]
    try:
        return {"enum": _valid(values, whole)}
    except ValueError:
        return node  # A pattern that the validator does not know is refused later.


def _valid(values: Iterable[Any], schema: Any) -> list[Any]:
    """Those values that are valid with the formats of a schema and without: `not` may have one."""
    both = [
        jsonschema_rs.validator_for(schema, validate_formats=formats) for formats in (True, False)
    ]
    return [value for value in values if all(one.is_valid(value) for one in both)]


def _scalars(items: Any) -> list[Any] | None:
    """The scalars that a schema allows; None if it allows others."""
    if not isinstance(items, dict) or set(items) - _READ - ADVICE:
        return None
    values: list[Any] | None
    if "const" in items:
        values = [items["const"]]
    else:
        values = items["enum"] if "enum" in items else _of_type(items)
    if values is None or any(isinstance(value, (list, dict)) for value in values):
        return None
    # To Python, True is 1.
    distinct = {(isinstance(value, bool), value): value for value in values}
    return _valid(distinct.values(), items)


def _of_type(items: dict[str, Any]) -> list[Any] | None:
    """The values of a type that has a few; None if it may have many."""
    match items.get("type"):
        case "boolean":
            return [True, False]
        case "null":
            return [None]
        case "integer" if "minimum" in items and "maximum" in items:
            least, most = math.ceil(items["minimum"]), math.floor(items["maximum"])
            return list(range(least, most + 1)) if most - least < _MOST_INTEGERS else None
    return None
