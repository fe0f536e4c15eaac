"""References of a JSON Schema: what they point at, and which of them a grammar can follow."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from inference.engines.json_schema.errors import UNSUPPORTED, Path, SchemaError
from inference.engines.json_schema.recursion import endless_reference
from inference.engines.json_schema.rules import ADVICE, DRAFT_4, LATEST_WITH_IGNORED

# Keywords whose schemas apply to the same value, with a list or a map of schemas.
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_MAPS: Final = ("dependentSchemas", "dependencies")
_ONES: Final = ("not", "if", "then", "else")
_NOTHING: Final = object()


class References:
    """The references of one schema of a dialect, and what is named in it."""

    def __init__(self, root: Any, dialect: int) -> None:
        self._root = root
        self._id_key = "id" if dialect == DRAFT_4 else "$id"
        self._alone = dialect <= LATEST_WITH_IGNORED
        self._references: dict[Path, str] = {}
        self._anchors: dict[str, Path] = {}
        self._identified: list[Path] = []

    def note(self, key: str, value: Any, path: Path) -> None:
        """Takes a keyword that stands at `path`."""
        if key == "$ref":
            self._references[path[:-1]] = value
        elif key == "$anchor":
            self._anchors[value] = path[:-1]
        elif key == self._id_key and len(path) > 1:
            self._identified.append(path)

    def followed(self, reference: Any) -> Any:
        """The part that a reference like "#/$defs/A" points at; None if it is another kind."""
        path = target(self._root, reference)
        return None if path is None else part_at(self._root, path)

    def resolved(self, schema: Any) -> Any:
        """The schema, or what it refers to if it does nothing else."""
        seen: set[str] = set()
        while isinstance(schema, dict) and "$ref" in schema:
            if not self._alone and set(schema) - {"$ref"} - ADVICE:
                break
            reference = schema["$ref"]
            if reference in seen:
                return None
            seen.add(reference)
            schema = self.followed(reference)
        return schema

    def check(self, rewritten: Any, visited: dict[Path, Any]) -> None:
        """Refuses references to what is no schema, or stands elsewhere in the rewritten one."""
        if self._references and self._identified:
            raise SchemaError(self._identified[0], "cannot be enforced beside $ref")
        goals: dict[Path, Path] = {}
        for path, reference in self._references.items():
            goal = self._anchors.get(unquote(reference[1:]), target(self._root, reference))
            if goal is None or goal not in visited or part_at(rewritten, goal) is not visited[goal]:
                raise SchemaError((*path, "$ref"), UNSUPPORTED)
            goals[path] = goal
        if (place := endless_reference(rewritten, visited)) is not None:
            raise SchemaError(place, "leads back to itself without an end")
        if (loop := _looping(self._root, goals)) is not None:
            raise SchemaError((*loop, "$ref"), "leads back to itself")


def target(root: Any, reference: str) -> Path | None:
    """The path that a reference like "#/$defs/A" points at; None if there is no such place."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    path: list[str | int] = []
    part = root
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        path.append(int(name) if isinstance(part, list) and name.isdecimal() else name)
        part = _inner(part, path[-1])
        if part is _NOTHING:
            return None
    return tuple(path)


def part_at(root: Any, path: Path) -> Any:
    """The part at a path; None if there is none."""
    part = root
    for step in path:
        part = _inner(part, step)
    return None if part is _NOTHING else part


def _inner(part: Any, step: str | int) -> Any:
    if isinstance(part, dict):
        return part.get(step, _NOTHING)
    if isinstance(part, list) and isinstance(step, int) and step < len(part):
        return part[step]
    return _NOTHING


def _looping(root: Any, references: dict[Path, Path]) -> Path | None:
    """A `$ref` that leads back to its own schema for the same value; None if there is none.

    `references` has the targets by the paths of the schemas that have a `$ref`.
    """
    done: set[Path] = set()
    open_paths: set[Path] = set()

    def visit(path: Path) -> Path | None:
        if path in done:
            return None
        open_paths.add(path)
        for inner in _in_place(part_at(root, path), path):
            if (found := visit(inner)) is not None:
                return found
        if path in references:
            goal = references[path]
            if goal in open_paths:
                return path
            if (found := visit(goal)) is not None:
                return found
        open_paths.remove(path)
        done.add(path)
        return None

    return next((loop for path in references if (loop := visit(path)) is not None), None)


def _in_place(node: Any, path: Path) -> list[Path]:
    """The schemas that apply to the same value: no value would end the loop."""
    if not isinstance(node, dict):
        return []
    found: list[Path] = [(*path, key) for key in _ONES if key in node]
    for key in _LISTS:
        found += [(*path, key, i) for i in range(len(node.get(key, ())))]
    for key in _MAPS:
        found += [(*path, key, name) for name in node.get(key, ())]
    return found
