"""Random JSON Schemas that combine the keywords which the grammar enforces."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["a", "b", "c", "ab", "é", 'a"b', "x\\y", "$", "0"]
_PATTERNS = [
    *("^a+$", "b", "^[ab]{1,3}$", r"^\S+$", "^.$", "[^a]", "^(a|b)*$", r"\d", r"^\w{2}$"),
    *(r"^[\]a-c]$", "^[a[b]$", "a.c", r"^\s?x$", "^[&&a~~]+$"),
]
_FORMATS = [
    *("date", "uuid", "ipv4", "email", "nonsense", "time", "hostname", "uri", "duration"),
    *("date-time", "ipv6"),
]
_VALUES = ["a", "b", 1, 2.5, None, True, False, [1], {"a": 1}, "é", 0, -3, 'a"', 1e-5, "\u0000"]


class SchemaWriter:
    """Writes schemas from one source of chance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def root(self) -> dict[str, Any]:
        schema = self._schema(0)
        definitions = {"P": self._schema(2), "Q": self._schema(1)}
        return {**(schema if isinstance(schema, dict) else {}), "$defs": definitions}

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _schema(self, depth: int) -> Any:
        choose = self._random.choice
        if depth > 3 or self._chance(0.25):
            return self._leaf()
        out: dict[str, Any] = {}
        kind = choose(["object", "object", "array", "meeting"])
        if kind == "object":
            out = self._object(depth)
        elif kind == "array":
            out = self._array(depth)
        if kind == "meeting" or self._chance(0.25):
            key = choose(["anyOf", "allOf", "oneOf", "$ref", "anyOf"])
            branches = [
                self._object(depth) if self._chance(0.6) else self._schema(depth + 1)
                for _ in range(self._random.randint(1, 3))
            ]
            out[key] = f"#/$defs/{choose('PQ')}" if key == "$ref" else branches
            self._opposite(out, depth)
            if self._chance(0.3):
                items = list(out.items())
                self._random.shuffle(items)
                out = dict(items)
        return out

    def _opposite(self, out: dict[str, Any], depth: int) -> None:
        """Adds `not`, `if` or `unevaluatedProperties`."""
        if self._chance(0.15):
            out["not"] = self._condition()
        if self._chance(0.2):
            out["if"] = self._condition()
            for key in ("then", "else"):
                if self._chance(0.7):
                    out[key] = self._object(depth) if self._chance(0.5) else self._condition()
        if self._chance(0.2):
            parts = [{"if": self._condition(), "then": self._object(depth)} for _ in range(2)]
            out["allOf"] = [*out.get("allOf", ()), *parts]
            out.setdefault("type", "object")
        if self._chance(0.15):
            out["unevaluatedProperties"] = False

    def _condition(self) -> Any:
        choose, name = self._random.choice, self._random.choice("abc")
        tested = choose([{"const": choose(_VALUES)}, {"enum": self._random.sample(_VALUES, 2)}])
        return choose(
            [
                {"required": self._random.sample("abc", self._random.randint(1, 2))},
                {"properties": {name: tested}},
                {"properties": {name: tested}, "required": [name]},
                {"type": "object", "properties": {name: tested}, "required": [name]},
                {"anyOf": [{"required": ["a"]}, {"properties": {name: tested}}]},
                {"allOf": [{"required": ["a"]}, {"not": {"required": ["b"]}}]},
                {"type": choose(["string", "null", "object", ["array", "boolean"]])},
                {choose(["minimum", "maxLength", "minItems", "exclusiveMaximum"]): 2},
                tested,
                choose([{}, False, True, {"description": "x"}]),
            ]
        )

    def _leaf(self) -> Any:
        choose, number = self._random.choice, self._random.randint
        return choose(
            [
                {"type": "string"},
                {"type": "string", "minLength": 1, "maxLength": 3},
                {"type": "string", "pattern": choose(_PATTERNS)},
                {"pattern": choose(_PATTERNS), "maxLength": 2},
                {"type": "string", "format": choose(_FORMATS)},
                {"type": "integer", "minimum": number(-20, 5)},
                {"type": "integer", "exclusiveMinimum": 0, "maximum": number(3, 30)},
                {"type": "integer", "multipleOf": choose([2, 3, 0.5, 7])},
                {"type": "number", "minimum": choose([-1.5, 0, 2, 0.1])},
                {"type": "number", "multipleOf": choose([0.1, 0.01, 2.5, 3])},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"enum": self._random.sample(_VALUES, number(1, 4))},
                {"type": choose(["string", "number"]), "not": {"enum": ["a", "b", 1, 2.5]}},
                {"enum": self._random.sample(_VALUES, 4), "not": {"type": "string"}},
                {"const": choose([*_VALUES, {"a": {"b": 1}}, [1, "a"]])},
                {"type": choose(["boolean", "null", ["string", "null"], ["integer", "string"]])},
                choose([{}, True, {"description": "x"}]),
                {"type": choose(["object", "array"])},
                {choose(["minimum", "maxLength", "minItems", "multipleOf"]): number(1, 3)},
            ]
        )

    def _object(self, depth: int) -> dict[str, Any]:
        chance, choose = self._chance, self._random.choice
        out: dict[str, Any] = {"type": "object"} if chance(0.7) else {}
        names = self._random.sample(_NAMES, self._random.randint(1, 3))
        if chance(0.85):
            out["properties"] = {
                name: False if chance(0.06) else self._schema(depth + 1) for name in names
            }
        if chance(0.5):
            out["required"] = [choose([*names, "z"])] if chance(0.3) else names[:1]
        if chance(0.45):
            out["additionalProperties"] = choose([False, True, self._schema(depth + 1)])
        if chance(0.08):
            pattern = choose(["^a", "b$", "^x-", "^.{2}$"])
            out["patternProperties"] = {pattern: self._schema(depth + 1)}
        if chance(0.03):
            out["propertyNames"] = choose(
                [{"type": "string"}, {"enum": ["a", "b"]}, {"pattern": "^[a-c]"}, {"maxLength": 2}]
            )
        if chance(0.03):
            out[choose(["minProperties", "maxProperties"])] = self._random.randint(0, 3)
        if chance(0.12):
            out["dependentRequired"] = {choose("ab"): [choose(["b", "c", "z"])]}
        if chance(0.07):
            out["dependentSchemas"] = {choose("ab"): self._schema(depth + 2)}
        if chance(0.03):
            out["unevaluatedProperties"] = False
        return out

    def _array(self, depth: int) -> dict[str, Any]:
        chance, number = self._chance, self._random.randint
        out: dict[str, Any] = {"type": "array"} if chance(0.7) else {}
        if chance(0.7):
            out["items"] = self._schema(depth + 1)
        if chance(0.3):
            out["prefixItems"] = [self._schema(depth + 1) for _ in range(number(1, 2))]
        if chance(0.3):
            out["minItems"] = number(0, 2)
        if chance(0.3):
            out["maxItems"] = number(0, 3)
        return out
