"""How often the check of an answer visits one of its values.

A validator reads each branch of `anyOf` anew, with all that is inside. So two branches that lead to
the same definition visit a value twice as often with each level of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from inference.engines.json_schema.references import part_at, target

# Visits of one value beyond those that a schema of this size makes anyway.
_MOST: Final = 3000
_DEEPEST: Final = 1000
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_MAPS: Final = ("dependentSchemas", "dependencies")
_ONES: Final = ("not", "if", "then", "else")
_DEFINED: Final = ("$defs", "definitions")
_EACH: Final = (
    *("additionalProperties", "unevaluatedProperties"),
    *("items", "additionalItems", "unevaluatedItems"),
)
_ANY: Final = None


def safe_depth(root: dict[str, Any]) -> int | None:
    """The most levels that an answer may have so that its check ends soon; None for any number.

    Args:
        root: A schema whose references are known to lead to other schemas and to come to an end.
    """
    if "$ref" not in str(root):
        return None
    return _Visits(root).safe_depth()


class _Visits:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._nodes = {id(node): node for node in _nodes(root)}
        self._anchors = {
            f"#{node['$anchor']}": node for node in self._nodes.values() if "$anchor" in node
        }
        self._together: dict[int, Counter[int]] = {}
        self._inner = {number: self._steps(node) for number, node in self._nodes.items()}

    def safe_depth(self) -> int | None:
        most = _MOST + len(self._nodes)
        here = {number: self._same(number).total() for number in self._nodes}
        visits = here
        for depth in range(_DEEPEST):
            if visits[id(self._root)] > most:
                return depth - 1
            deeper = {
                number: min(max([here[number], *self._below(number, visits)]), most + 1)
                for number in self._nodes
            }
            if deeper == visits:
                return None
            visits = deeper
        return _DEEPEST

    def _below(self, number: int, visits: dict[int, int]) -> list[int]:
        """Visits of the values in a value, by the steps that lead to them."""
        return [
            sum(count * visits[inner] for inner, count in found.items())
            for found in self._inner[number].values()
        ]

    def _same(self, number: int) -> Counter[int]:
        """The schemas that a value is checked against with one, and how often."""
        if number not in self._together:
            found = Counter([number])
            for inner in self._in_place(self._nodes[number]):
                if id(inner) in self._nodes:
                    found += self._same(id(inner))
            self._together[number] = found
        return self._together[number]

    def _in_place(self, node: dict[str, Any]) -> Iterator[Any]:
        yield from (node[key] for key in _ONES if key in node)
        for key in _LISTS:
            yield from node.get(key, ())
        for key in _MAPS:
            yield from node.get(key, {}).values()
        if (reference := node.get("$ref")) is not None:
            path = target(self._root, reference)
            yield self._anchors.get(reference) if path is None else part_at(self._root, path)

    def _steps(self, node: dict[str, Any]) -> dict[Any, Counter[int]]:
        """The schemas of the values in a value, by property or index."""
        named: dict[Any, Counter[int]] = {}
        anywhere: Counter[int] = Counter()
        for same, times in self._same(id(node)).items():
            for step, inner in _inner(self._nodes[same]):
                if id(inner) in self._nodes:
                    found = anywhere if step is _ANY else named.setdefault(step, Counter())
                    found[id(inner)] += times
        return {step: found + anywhere for step, found in named.items()} | {_ANY: anywhere}


def _inner(node: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for name, part in node.get("properties", {}).items():
        yield (name, part)
    for part in node.get("patternProperties", {}).values():
        yield (_ANY, part)
    for key in _EACH:
        part = node.get(key)
        if isinstance(part, list):
            yield from enumerate(part)
        else:
            yield (_ANY, part)
    yield from enumerate(node.get("prefixItems", ()))


def _nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All schemas in a schema."""
    todo: list[Any] = [root]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            yield part
            todo += [inner for _, inner in _inner(part)]
            todo += [part[key] for key in _ONES if key in part]
            todo += [inner for key in _LISTS for inner in part.get(key, ())]
            todo += [inner for key in (*_MAPS, *_DEFINED) for inner in part.get(key, {}).values()]
