"""References of a JSON Schema, all rewritten to places of the whole one.

A reference is relative to the `$id` of the part that it stands in. Where parts have one, each
reference becomes a pointer from the top, and the names go. A part that stands where the standard
has no schema, such as OpenAPI's `#/components/schemas/A`, becomes a definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from inference.engines.json_schema.errors import OUTSIDE, UNSUPPORTED, Path, SchemaError
from inference.engines.json_schema.references import part_at, target
from inference.engines.json_schema.rules import (
    DRAFT_4,
    LATEST_WITH_IGNORED,
    LISTED,
    NAMED,
    ONE_SCHEMA,
)

# Keywords whose values are never schemas.
_NO_SCHEMAS: Final = frozenset({"const", "enum", "default", "examples"})


class Locations:
    """The places of one schema.

    Attributes:
        root: The schema, of which the references are rewritten.
        moved: Where the client has what became a definition, by its name.
    """

    def __init__(self, root: dict[str, Any], dialect: int) -> None:
        self.root = root
        self.moved: dict[str, Path] = {}
        self._dialect = dialect
        self._id = "id" if dialect == DRAFT_4 else "$id"
        # The URI that the references of each part are relative to; the part of each URI; and
        # those of a name.
        self._bases: dict[Path, str] = {}
        # The value is None if two parts have the same name.
        self._resources: dict[str, Path | None] = {"": ()}
        self._anchors: dict[tuple[str, str], Path | None] = {}
        self._named = False
        self._index((), "")
        self._resolve()

    def original(self, path: Path) -> Path:
        """The client's path of a part."""
        if len(path) > 1 and path[0] == "$defs" and path[1] in self.moved:
            return (*self.moved[str(path[1])], *path[2:])
        return path

    def _index(self, path: Path, base: str) -> None:
        node = part_at(self.root, path)
        if not isinstance(node, dict) or path in self._bases:
            return
        name = node.get(self._id)
        ignored = "$ref" in node and self._dialect <= LATEST_WITH_IGNORED
        self._named = self._named or (isinstance(name, str) and bool(path))
        if isinstance(name, str) and not ignored:
            uri, fragment = _joined(base, name)
            if not name.startswith("#"):
                base = uri
                _name(self._resources, uri, path)
            if fragment:
                _name(self._anchors, (uri, fragment), path)
        self._bases[path] = base
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                _name(self._anchors, (base, node[key]), path)
        for inner in _inner(node):
            self._index((*path, *inner), base)

    def _resolve(self) -> None:
        """Finds what each reference points at, and rewrites the schema."""
        goals: dict[Path, Path] = {}
        waiting = list(self._bases)
        while waiting:
            path = waiting.pop()
            reference = self._part(path).get("$ref")
            if not isinstance(reference, str):
                continue
            goal = self._goal(self._bases[path], reference)
            if goal is None:
                inside = reference.startswith("#")
                raise SchemaError((*path, "$ref"), UNSUPPORTED if inside else OUTSIDE)
            if goal not in self._bases and self._move(goal):
                known = set(self._bases)
                self._index(goal, self._bases[self._around(goal)])
                waiting += set(self._bases) - known
            goals[path] = goal
        definitions = {name: self._rewritten(path, goals) for name, path in self.moved.items()}
        self.root = self._rewritten((), goals)
        if definitions:
            self.root["$defs"] = {**self.root.get("$defs", {}), **definitions}

    def _part(self, path: Path) -> Any:
        return part_at(self.root, path)

    def _goal(self, base: str, reference: str) -> Path | None:
        """The place that a reference points at; None if it is not in this schema."""
        uri, fragment = _joined(base, reference)
        top = self._resources.get(uri)
        if top is None or (fragment and not fragment.startswith("/")):
            return self._anchors.get((uri, unquote(fragment)))
        inner = target(self._part(top), f"#{fragment}")
        goal = None if inner is None else (*top, *inner)
        return goal if goal is None or isinstance(self._part(goal), (dict, bool)) else None

    def _around(self, path: Path) -> Path:
        """The innermost schema around a place."""
        return next(p for n in range(len(path), -1, -1) if (p := path[:n]) in self._bases)

    def _move(self, goal: Path) -> bool:
        """Makes a place that is no schema to the standard a definition."""
        if goal in self.moved.values():
            return True
        step = goal[len(self._around(goal))]
        if step in _NO_SCHEMAS or not isinstance(self.root.get("$defs", {}), dict):
            return False
        name: str = "/".join(map(str, goal))
        while name in self.root.get("$defs", {}):
            name += "'"
        self.moved[name] = goal
        return True

    def _rewritten(self, path: Path, goals: dict[Path, Path]) -> Any:
        node = self._part(path)
        if path not in self._bases:
            return node
        out = dict(node)
        if path in goals and (self._named or self.moved or not out["$ref"].startswith("#")):
            out["$ref"] = self._pointer(goals[path])
        if self._named and path:
            for naming in (self._id, "$anchor", "$dynamicAnchor"):
                out.pop(naming, None)
        for key, *rest in _inner(node):
            inner = self._rewritten((*path, key, *rest), goals)
            if not rest:
                out[key] = inner
                continue
            if out[key] is node[key]:
                out[key] = node[key].copy()
            out[key][rest[0]] = inner
        return out

    def _pointer(self, goal: Path) -> str:
        for definition, place in self.moved.items():
            if goal[: len(place)] == place:
                goal = ("$defs", definition, *goal[len(place) :])
                break
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in goal)
        return "#" + "".join(f"/{quote(step, safe='')}" for step in steps)


def _name(names: dict[Any, Path | None], name: Any, path: Path) -> None:
    names[name] = path if names.get(name, path) == path else None


def _joined(base: str, reference: str) -> tuple[str, str]:
    """The URI of a reference, and its fragment."""
    uri, fragment = urldefrag(reference)
    if not uri:
        return base, fragment
    # urljoin handles only the schemes of the web.
    return (uri if urlsplit(uri).scheme else urljoin(base, uri)), fragment


def _inner(node: dict[str, Any]) -> Iterator[Path]:
    """The steps to the schemas in a schema."""
    for key, value in node.items():
        if key in ONE_SCHEMA and isinstance(value, (dict, bool)):
            yield (key,)
        elif key in LISTED and isinstance(value, list):
            yield from ((key, index) for index in range(len(value)))
        elif key in NAMED and isinstance(value, dict):
            yield from ((key, name) for name in value)
