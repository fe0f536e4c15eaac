"""Rewrites a JSON Schema to the keywords that llguidance enforces; see json_schema.py.

Objects of one value are merged where schemas meet: below `allOf`, and below `anyOf`, `oneOf` and
`$ref` with other keywords beside them. A merged object that admits other properties has them as a
pattern of names; one that is not merged is closed instead, unless it has
`additionalProperties`.
"""

from __future__ import annotations

from typing import Any, Final

from inference.engines.json_schema.cases import split
from inference.engines.json_schema.errors import Path, SchemaError
from inference.engines.json_schema.evaluated import closing
from inference.engines.json_schema.grammars import compile_error
from inference.engines.json_schema.meeting import (
    IN_PLACE,
    OBJECT,
    has_merged_reference,
    meets,
    types,
)
from inference.engines.json_schema.names import OPEN, check_names, pattern_of
from inference.engines.json_schema.numbers import (
    BOUNDS,
    Multiples,
    check_bound,
    check_numbers,
    inclusive_bounds,
)
from inference.engines.json_schema.opposites import Opposites
from inference.engines.json_schema.patterns import conditions
from inference.engines.json_schema.properties import OtherProperties
from inference.engines.json_schema.references import References
from inference.engines.json_schema.rules import (
    DIALECTS,
    NARROWED,
    OLD_REFUSED,
    REFUSED,
    is_refused,
)
from inference.engines.json_schema.values import unique_arrays, with_valid_values

_COUNTS: Final = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)
# Items of one array, and of all arrays of a schema. Each token costs 2 microseconds for each.
_MOST_ITEMS: Final = 2000
_MOST_ITEMS_IN_ALL: Final = 20_000
_IN_PLACE_LAST: Final = frozenset({"const", "enum", "$ref", "allOf", "anyOf"})
# Keywords for which the values of an `enum` are looked through.
_FILTERED: Final = frozenset({"not", "if", "oneOf", "contains", "unevaluatedProperties"})
_COPIED: Final = ("$ref", "type", "$anchor", "$id", "$schema", "required")


class Rewriter:
    """Rewrites the parts of one schema; `visited` has them by their paths, inner ones first."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._dialect = DIALECTS.get(root.get("$schema", ""), 2020)
        # A definition may be used in both ways, so one merged use makes every part merged.
        self._all_merged = has_merged_reference(root)
        self._multiples = Multiples()
        self._items = 0
        self._references = References(root, self._dialect)
        self._opposites = Opposites(self.rewrite, self._references.resolved, self._dialect)
        # By path: each rewritten part, and the part that the client sent.
        self.visited: dict[Path, Any] = {}
        self.sent: dict[Path, dict[str, Any]] = {}

    def whole(self) -> dict[str, Any]:
        """The schema; raises SchemaError."""
        rewritten: dict[str, Any] | bool = self.rewrite(self._root, (), False)
        if isinstance(rewritten, bool):
            raise SchemaError(("not",), "allows no value")
        self._references.check(rewritten, self.visited)
        return rewritten

    def rewrite(self, node: Any, path: Path, merged: bool) -> Any:
        """The part at `path`; raises SchemaError."""
        if not isinstance(node, dict):
            self.visited[path] = node
            return node
        if not _FILTERED.isdisjoint(node) and ("enum" in node or "const" in node):
            node = with_valid_values(node, self._root.get("$schema"))
        merged = merged or self._all_merged or meets(node)
        out: dict[str, Any] = {}
        for key, value in node.items():
            self._keyword(node, key, value, (*path, key), merged, out)
        if False in out.get("allOf", ()):
            self.visited[path] = False
            return False
        self._names(node, path, merged, out)
        self._unique(node, path, out)
        out |= inclusive_bounds(node)
        # llguidance reads what stands behind one of these as a schema of its own.
        out = {key: out[key] for key in sorted(out, key=_IN_PLACE_LAST.__contains__)}
        self.visited[path], self.sent[path] = out, node
        return out

    def _keyword(
        self,
        node: dict[str, Any],
        key: str,
        value: Any,
        path: Path,
        merged: bool,
        out: dict[str, Any],
    ) -> None:
        if key in REFUSED or key in OLD_REFUSED or is_refused(node, key, self._dialect):
            raise SchemaError(path)
        both = "properties" in node and "patternProperties" in node
        if key in ("$defs", "definitions", "properties"):
            check_names(value, path)
            out[key] = self._each(value, path, (merged or both) and key == "properties")
        elif key == "patternProperties":
            patterns = {pattern_of(name, path): name for name in value}
            if len(patterns) < len(value):
                raise SchemaError(path, "has two patterns of the same meaning")
            out[key] = {
                pattern: self.rewrite(value[name], (*path, name), merged or both)
                for pattern, name in patterns.items()
            }
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            self._list(node, key, path, merged, out)
        elif key in ("not", "if"):
            out.setdefault("allOf", []).append(self._opposites.instead(node, key, path))
        elif key in ("then", "else"):
            pass  # Rewritten with `if`; without it they mean nothing.
        elif key == "items":
            if isinstance(value, list):
                out[key] = [self.rewrite(v, (*path, i), merged) for i, v in enumerate(value)]
            else:
                out[key] = self.rewrite(value, path, merged)
        elif key == "additionalItems":
            if isinstance(node.get("items"), list):
                out[key] = self.rewrite(value, path, merged)
        elif key in ("dependentRequired", "dependentSchemas", "dependencies"):
            check_names(value, path)
            for name, needed in value.items():
                out.setdefault("allOf", []).append(self._dependent(name, needed, (*path, name)))
        elif key in ("unevaluatedItems", "unevaluatedProperties"):
            self._unevaluated(node, key, value, path, merged, out)
        elif key == "pattern":
            *more, out[key] = (pattern_of(one, path) for one in conditions(value))
            out.setdefault("allOf", []).extend({"pattern": one} for one in more)
        elif key == "format":
            self._format(node, value, out)
        elif key == "multipleOf":
            check_numbers(value, path)
            if inclusive_bounds(node).get("maximum", 0) < 0:
                raise SchemaError(path, "cannot be enforced for negative numbers")
            self._multiples.check(value, path, merged)
            out[key] = value
        else:
            self._references.note(key, value, path)
            self._simple(key, value, path, out)

    def _simple(self, key: str, value: Any, path: Path, out: dict[str, Any]) -> None:
        """Keywords without a schema inside."""
        if key == "$schema":
            if len(path) > 1:
                raise SchemaError(path, "is only allowed at the top")
            out[key] = value
        elif key in ("enum", "const"):
            check_numbers(value, path)
            out[key] = value
        elif key in BOUNDS:
            check_bound(key, value, path)
        elif key in _COUNTS:
            out[key] = self._count(key, value, path)
        elif key in _COPIED:
            if key == "required":
                check_names(value, path)
            out[key] = value
        # All other keywords are advice or have no effect.

    def _format(self, node: dict[str, Any], value: Any, out: dict[str, Any]) -> None:
        """To the standard a format is advice, so a pattern that contradicts it goes first."""
        narrowed = [{"pattern": pattern} for pattern in NARROWED.get(value, ())]
        if isinstance(node.get("pattern"), str):
            patterns = [{"pattern": pattern_of(p, ())} for p in conditions(node["pattern"])]
            both = {"type": "string", "format": value, "allOf": [*narrowed, *patterns]}
            if compile_error(both).startswith("Unsatisfiable"):
                return
        out["format"] = value
        out.setdefault("allOf", []).extend(narrowed)

    def _unique(self, node: dict[str, Any], path: Path, out: dict[str, Any]) -> None:
        """Lists the arrays whose items differ."""
        if node.get("uniqueItems") is not True or node.get("maxItems", 2) <= 1:
            return
        arrays = unique_arrays(node, self._references.resolved(node.get("items")))
        if arrays is None:
            raise SchemaError((*path, "uniqueItems"))
        if not arrays:
            raise SchemaError((*path, "uniqueItems"), "allows no value")
        for key in ("items", "minItems", "maxItems"):
            out.pop(key, None)
        out["enum"] = arrays

    def _count(self, key: str, value: float, path: Path) -> int:
        """A number of characters, items or properties."""
        check_numbers(value, path)
        count = int(value)
        if key in ("minItems", "maxItems"):
            # The grammar has a symbol for each item.
            if key == "minItems" and count > _MOST_ITEMS:
                raise SchemaError(path, f"is more than {_MOST_ITEMS}")
            count = min(count, _MOST_ITEMS)
            self._items += count
            if self._items > _MOST_ITEMS_IN_ALL:
                raise SchemaError(path, f"makes more than {_MOST_ITEMS_IN_ALL} items in all")
        return count

    def _each(self, schemas: dict[str, Any], path: Path, merged: bool) -> dict[str, Any]:
        return {name: self.rewrite(s, (*path, name), merged) for name, s in schemas.items()}

    def _list(
        self, node: dict[str, Any], key: str, path: Path, merged: bool, out: dict[str, Any]
    ) -> None:
        if key == "prefixItems" and self._dialect != 2020:
            raise SchemaError(path, "is not part of the schema's dialect")
        value = node[key]
        known = split(node, path, self.rewrite) if key == "allOf" else {}
        branches = [
            known[i] if i in known else self.rewrite(v, (*path, i), merged)
            for i, v in enumerate(value)
        ]
        if key in ("anyOf", "oneOf") and node.get("unevaluatedProperties", True) is not True:
            for number, branch in enumerate(value):
                more = self._closing(node, (*path[:-1], "unevaluatedProperties"), branch)
                branches[number] = _all_of([branches[number], *more])
        if key == "oneOf":
            # llguidance has a proof of its own, which is wrong for some branches.
            for number, more in enumerate(self._opposites.exclusions(value, path)):
                branches[number] = _all_of([branches[number], *more])
            out.setdefault("allOf", []).append({"anyOf": branches})
        else:
            out[key] = [*out.get(key, ()), *branches]

    def _dependent(self, name: str, needed: Any, path: Path) -> dict[str, Any]:
        """Either the object lacks `name`, or it has it and obeys `needed`."""
        names = needed if isinstance(needed, list) else []
        check_names(names, path)
        schema = {} if isinstance(needed, list) else self.rewrite(needed, path, True)
        absent = {"properties": {name: False}, **OPEN}
        present = {"required": list(dict.fromkeys([name, *names])), **OPEN}
        return {"anyOf": [absent, {"allOf": [present, schema]} if schema != {} else present]}

    def _unevaluated(
        self,
        node: dict[str, Any],
        key: str,
        value: Any,
        path: Path,
        merged: bool,
        out: dict[str, Any],
    ) -> None:
        """Without applicators beside it, it is `items` or `additionalProperties`."""
        if value is True:
            return
        if any(name in node for name in IN_PLACE):
            if key == "unevaluatedItems" or value is not False:
                raise SchemaError(path)
            if "anyOf" not in node and "oneOf" not in node:  # _list closes the branches.
                out.setdefault("allOf", []).extend(self._closing(node, path, None))
            return
        if key == "unevaluatedItems" and "items" not in node:
            out["items"] = self.rewrite(value, path, merged)
        elif isinstance(node.get("items"), list) and "additionalItems" not in node:
            out["additionalItems"] = self.rewrite(value, path, merged)

    def _closing(self, node: dict[str, Any], path: Path, branch: Any) -> list[Any]:
        """The schema that forbids unevaluated properties, if one is needed."""
        found = closing(node, path, self._references.followed, branch)
        return [] if found is None else [self.rewrite(found, path, True)]

    def _names(self, node: dict[str, Any], path: Path, merged: bool, out: dict[str, Any]) -> None:
        """Sets `additionalProperties`, or the patterns that stand for it."""
        keywords = {key for key in OBJECT if key in node}
        if any(key in node for key in IN_PLACE):
            keywords -= {"unevaluatedProperties"}  # See _unevaluated.
        if not keywords and "object" not in types(node):
            return
        is_last = "unevaluatedProperties" in keywords and "additionalProperties" not in keywords
        key = "unevaluatedProperties" if is_last else "additionalProperties"
        others = self.rewrite(node.get(key, True), (*path, key), merged)
        rule = self._rule_of_names(node)
        OtherProperties(node, path, key, others, rule, merged).write(out)

    def _rule_of_names(self, node: dict[str, Any]) -> Any:
        rule = node.get("propertyNames", True)
        if isinstance(rule, dict) and set(rule) == {"$ref"}:
            return self._references.followed(rule["$ref"])
        return rule


def _all_of(schemas: list[Any]) -> Any:
    if len(schemas) == 1:
        return schemas[0]
    return False if False in schemas else {"allOf": schemas}
