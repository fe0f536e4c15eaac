"""Several `if` in an `allOf` that ask for the value of one property, as one case for each value.

On their own they would become a grammar of all their combinations, which are twice as many with
each `if`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from inference.engines.json_schema.complement import NoComplementError, complement
from inference.engines.json_schema.errors import OPPOSITE, Path, SchemaError
from inference.engines.json_schema.meeting import scalars, types
from inference.engines.json_schema.rules import KEYWORDS, WITHOUT_VALUES

_CONDITION: Final = frozenset({"properties", "required", "type"})
_RESTRICTING: Final = KEYWORDS - WITHOUT_VALUES
_Value = tuple[bool, Any]
Rewrite = Callable[[Any, Path, bool], Any]
"""Rewrites a schema of the client, which stands at a path and is merged or not."""


@dataclass(frozen=True, slots=True)
class _Case:
    """An `if` that asks for the values of one property, and what follows.

    Attributes:
        values: As meeting.scalars has them.
        needs: Whether the property has to be there.
    """

    values: set[_Value]
    needs: bool
    then: Any
    otherwise: Any

    def follows(self, *, holds: bool) -> Any:
        return self.then if holds else self.otherwise


def split(node: dict[str, Any], path: Path, rewrite: Rewrite) -> dict[int, Any]:
    """The schemas that stand for parts of an `allOf`, by their indexes.

    Args:
        node: The schema that has the `allOf`; an object.
        path: Where the `allOf` stands.
        rewrite: Rewrites what stands in the `allOf`.
    """
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, part in enumerate(node["allOf"]):
        if types(node) == {"object"} and (name := _asked(part)) is not None:
            found.setdefault(name, []).append((index, part))
    out: dict[int, Any] = {}
    for name, parts in found.items():
        if len(parts) > 1:
            cases = [_case(name, part, (*path, index), rewrite) for index, part in parts]
            out |= {index: {} for index, _ in parts}
            out[parts[0][0]] = _together(name, cases, (*path, parts[0][0], "if", OPPOSITE), rewrite)
    return out


def _asked(part: Any) -> str | None:
    """The property whose value an `if` asks for; None if it asks for anything else."""
    condition = part["if"] if _restrictions(part) == {"if"} else None
    if not isinstance(condition, dict) or _restrictions(condition) - _CONDITION:
        return None
    names = list(condition.get("properties", ()))
    if len(names) != 1 or "object" not in (types(condition) or {"object"}):
        return None
    wanted = condition["properties"][names[0]]
    alone = len(_restrictions(wanted)) == 1 and bool(scalars(wanted))
    return names[0] if alone and set(condition.get("required", names)) == set(names) else None


def _restrictions(node: Any) -> set[str]:
    return set(node.keys() & _RESTRICTING) if isinstance(node, dict) else set()


def _case(name: str, part: dict[str, Any], path: Path, rewrite: Rewrite) -> _Case:
    condition = part["if"]
    then, otherwise = (rewrite(part.get(key, True), (*path, key), True) for key in ("then", "else"))
    values = scalars(condition["properties"][name])
    return _Case(values, bool(condition.get("required")), then, otherwise)


def _together(name: str, cases: list[_Case], path: Path, rewrite: Rewrite) -> Any:
    """One way for each value, one for other values, and one without the property."""
    listed = sorted(set().union(*(case.values for case in cases)), key=repr)
    try:
        others = complement({"enum": [value for _, value in listed]})
    except NoComplementError as error:
        raise SchemaError(path) from error
    ways: list[list[Any]] = []
    for value in listed:
        first = _with(name, {"enum": [value[1]]})
        ways.append([first, *(case.follows(holds=value in case.values) for case in cases)])
    ways.append([_with(name, others), *(case.follows(holds=False) for case in cases)])
    absent = {"type": "object", "properties": {name: False}}
    ways.append([absent, *(case.follows(holds=not case.needs) for case in cases)])
    written = [[rewrite(first, path, True), *rest] for first, *rest in ways]
    return {"anyOf": [{"allOf": way} for way in written if False not in way]}


def _with(name: str, value: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: value}}
