"""Schemas of the values that another schema does not allow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final

from inference.engines.json_schema.meeting import types
from inference.engines.json_schema.patterns import other_texts
from inference.engines.json_schema.rules import KEYWORDS, WITHOUT_VALUES

_TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
# Each number of a list makes one more range.
_MOST_NUMBERS: Final = 50
# By keyword: the type that it bounds, the opposite keyword, and how far apart the bounds are.
_BOUNDS: Final = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
}


class NoComplementError(ValueError):
    """The complement is nothing that the grammar can hold."""


def complement(node: Any, kinds: Iterable[str] = ()) -> Any:
    """A schema of all values that `node` does not allow; raises NoComplementError.

    `kinds` are the types that matter; all if it is empty.
    """
    if isinstance(node, bool):
        return not node
    wanted = {"number" if kind == "integer" else kind for kind in kinds} or set(_TYPES)
    flags = any(isinstance(node.get(key), bool) for key in _BOUNDS)
    parts: list[Any] = []
    for key, value in node.items():
        if key in KEYWORDS and key not in WITHOUT_VALUES:
            if flags and key in _BOUNDS:
                raise NoComplementError  # draft 4
            parts += _violations(key, value, wanted)
    return _any_of(parts)


def lacking(node: Any) -> Any:
    """Objects without a property that `node` requires, or its complement if it requires none."""
    if not isinstance(node, (dict, bool)):
        raise NoComplementError
    if isinstance(node, dict) and not types(node) - {"object"} and node.get("required"):
        return _any_of(_violations("required", node["required"], {"object"}))
    return complement(node)


def _any_of(parts: list[Any]) -> Any:
    left = [part for part in parts if part is not False]
    if not left or True in left:
        return bool(left)
    return left[0] if len(left) == 1 else {"anyOf": left}


def _violations(key: str, value: Any, kinds: set[str]) -> list[Any]:
    """Schemas of values of some types; together they are all that break a keyword."""
    match key:
        case "type":
            return _other_types(types({"type": value}), kinds)
        case "enum" | "const":
            return _other_values(value if key == "enum" else [value], kinds)
        case "required":
            absent = [{"type": "object", "properties": {name: False}} for name in value]
            return absent if "object" in kinds else []
        case "properties":
            return _other_properties(value) if "object" in kinds else []
        case "allOf":
            return [complement(part, kinds) for part in value]
        case "anyOf":
            parts = [complement(part, kinds) for part in value]
            return [False if False in parts else {"allOf": parts}]
        case "not":
            return [value]
    if key not in _BOUNDS:
        raise NoComplementError
    kind, opposite, distance = _BOUNDS[key]
    bound = value + distance
    if kind not in kinds or (kind != "number" and bound < 0):
        return []
    return [{"type": kind, opposite: bound}]


def _other_types(named: set[str], kinds: set[str]) -> list[Any]:
    if "integer" in named and "number" not in named and "number" in kinds:
        raise NoComplementError  # The grammar has no numbers without the integers.
    left = [kind for kind in _TYPES if kind in kinds - named]
    return [{"type": left}] if left else []


def _other_properties(properties: dict[str, Any]) -> list[Any]:
    found = []
    for name, part in properties.items():
        opposite = complement(part)
        if opposite is not False:
            found.append({"type": "object", "required": [name], "properties": {name: opposite}})
    return found


def _other_values(values: list[Any], kinds: set[str]) -> list[Any]:
    if any(isinstance(value, (dict, list)) for value in values):
        raise NoComplementError
    texts = [value for value in values if isinstance(value, str)]
    flags = {value for value in values if isinstance(value, bool)}
    numbers = sorted({v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)})
    if len(numbers) > _MOST_NUMBERS:
        raise NoComplementError
    others: dict[str, list[Any]] = {kind: [{"type": kind}] for kind in _TYPES}
    if None in values:
        others["null"] = []
    if flags:
        others["boolean"] = [{"const": flag} for flag in (True, False) if flag not in flags]
    if texts:
        others["string"] = [{"type": "string", "pattern": other_texts(texts)}]
    if numbers:
        below = [{"type": "number", "exclusiveMaximum": numbers[0]}]
        above = [{"type": "number", "exclusiveMinimum": numbers[-1]}]
        between = [
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
            for low, high in itertools.pairwise(numbers)
        ]
        others["number"] = [*below, *between, *above]
    return [part for kind in _TYPES if kind in kinds for part in others[kind]]
