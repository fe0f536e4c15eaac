"""Arrays whose items differ, as lists of all their values."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import jsonschema_rs

from inference.engines.json_schema.rules import ADVICE

_MOST_ARRAYS: Final = 1000
_READ: Final = frozenset({"type", "enum", "const"})
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


def _scalars(items: Any) -> list[Any] | None:
    """The scalars that a schema allows; None if it allows others."""
    if not isinstance(items, dict) or set(items) - _READ - ADVICE:
        return None
    if "const" in items:
        values = [items["const"]]
    else:
        values = items.get("enum", {"boolean": [True, False], "null": [None]}.get(_type(items)))
    if values is None or any(isinstance(value, (list, dict)) for value in values):
        return None
    # To Python, True is 1.
    distinct = {(isinstance(value, bool), value): value for value in values}
    return [value for value in distinct.values() if jsonschema_rs.is_valid(items, value)]


def _type(items: dict[str, Any]) -> str:
    kind = items.get("type")
    return kind if isinstance(kind, str) else ""
