"""Keywords that say what a value is not: `not`, `if` with `then` and `else`, and `oneOf`.

They become `allOf` and `anyOf` with complements. Of two branches of `oneOf` that one value may
match, each gets what the other forbids: a property whose values tell them apart has to be there,
or one that the other branch requires must not.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Final

from inference.engines.json_schema.cases import Rewrite
from inference.engines.json_schema.complement import NoComplementError, complement, lacking
from inference.engines.json_schema.errors import OPPOSITE, Path, SchemaError
from inference.engines.json_schema.meeting import all_disjoint, differ, disjoint, types
from inference.engines.json_schema.rules import DRAFT_4, KEYWORDS, WITHOUT_VALUES

# Each pair of branches that one value may match makes the grammar larger.
_MOST_BRANCHES: Final = 40
# Levels of branches within branches that are looked through.
_DEEPEST: Final = 8


class Opposites:
    """Writes these keywords of one schema.

    Args:
        rewrite: Rewrites the client's schemas.
        resolve: Follows a schema that is only a reference; None if it leads nowhere.
        dialect: Of the whole schema.
    """

    def __init__(self, rewrite: Rewrite, resolve: Callable[[Any], Any], dialect: int) -> None:
        self._rewrite = rewrite
        self._resolve = resolve
        self._dialect = dialect

    def instead(self, node: dict[str, Any], key: str, path: Path) -> Any:
        """The rewritten schema that stands for `not` or `if`, the keyword at `path`."""
        try:
            if key == "not":
                return self._rewrite(self._complement(node[key], types(node)), path, True)
            return self._either(node, path)
        except NoComplementError as error:
            raise SchemaError(path) from error

    def exclusions(self, branches: list[Any], path: Path) -> list[list[Any]]:
        """Schemas to add to each branch of a `oneOf`, so that no value matches two branches."""
        nodes = list(map(self._resolve, branches))
        more: list[list[Any]] = [[] for _ in branches]
        if all_disjoint(nodes):
            return more
        try:
            if len(nodes) > _MOST_BRANCHES:
                raise NoComplementError
            leaves = list(map(self._leaves, nodes))
            for a, b in combinations(range(len(nodes)), 2):
                self._exclude(nodes, leaves, more, a, b)
        except NoComplementError as error:
            raise SchemaError(path, "has branches that one value may match together") from error
        return [
            [self._rewrite(v, (*path, i, OPPOSITE), True) for v in each]
            for i, each in enumerate(more)
        ]

    def _exclude(
        self, nodes: list[Any], leaves: list[list[Any]], more: list[list[Any]], a: int, b: int
    ) -> None:
        """Adds what two branches need to exclude each other."""
        pairs = [(one, other) for one in leaves[a] for other in leaves[b]]
        if all(disjoint(one, other) for one, other in pairs):
            return
        if (name := _telling(pairs)) is not None:
            needed = {"type": "object", "required": [name]}
            more[a] += [needed] if needed not in more[a] else []
            more[b] += [needed] if needed not in more[b] else []
        elif self._dialect == DRAFT_4:
            raise NoComplementError
        else:
            without_a, without_b = lacking(nodes[a]), lacking(nodes[b])
            more[a].append(without_b)
            more[b].append(without_a)

    def _leaves(self, node: Any, depth: int = 0) -> list[Any]:
        """The branches of a schema that has nothing but branches, or the schema."""
        if isinstance(node, dict) and depth < _DEEPEST:
            (key, *others) = [k for k in node if k in KEYWORDS - WITHOUT_VALUES] or [""]
            if key in ("anyOf", "oneOf") and not others:
                found = [self._leaves(self._resolve(part), depth + 1) for part in node[key]]
                return [leaf for part in found for leaf in part]
        return [node]

    def _either(self, node: dict[str, Any], path: Path) -> Any:
        """Either a value obeys `if` and `then`, or what `if` forbids and `else`."""
        if "then" not in node and "else" not in node:
            return {}
        condition = node["if"]
        opposite = self._complement(condition, types(node))
        ways = []
        for key, first, place in (("then", condition, path), ("else", opposite, (*path, OPPOSITE))):
            parts = [self._rewrite(first, place, True)]
            if key in node:
                parts.append(self._rewrite(node[key], (*path[:-1], key), True))
            if False not in parts:
                ways.append({"allOf": parts})
        return {"anyOf": ways} if ways else False

    def _complement(self, node: Any, kinds: set[str]) -> Any:
        if self._dialect == DRAFT_4 and node not in (True, {}):
            raise NoComplementError
        return complement(node, kinds)


def _telling(pairs: list[tuple[Any, Any]]) -> str | None:
    """A property whose values differ in all pairs of objects; None if there is none."""
    if not all(types(node) == {"object"} for pair in pairs for node in pair):
        return None
    return next(
        (
            name
            for name in pairs[0][0].get("properties", {})
            if all(
                differ(one.get("properties", {}).get(name), other.get("properties", {}).get(name))
                for one, other in pairs
            )
        ),
        None,
    )
