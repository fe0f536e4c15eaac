"""Rewrites `unevaluatedProperties: false` beside other schemas that apply to the same object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from inference.engines.json_schema.errors import Path, SchemaError

# Keywords with which the properties that count as evaluated depend on the value.
_CONDITIONAL: Final = frozenset(
    {
        *("anyOf", "oneOf", "if", "dependentSchemas", "dependencies"),
        *("patternProperties", "$dynamicRef", "$recursiveRef"),
    }
)
_BRANCHES: Final = ("anyOf", "oneOf")
# Levels of `allOf` and `$ref` that are followed.
_DEEPEST: Final = 64


def closing(
    node: dict[str, Any], path: Path, follow: Callable[[Any], Any], branch: Any = None
) -> Any:
    """The schema that closes an object with `unevaluatedProperties: false`; None if none does.

    Args:
        node: The schema with that keyword.
        path: Where the keyword stands.
        follow: Returns the schema that a `$ref` points at; None if there is none.
        branch: A branch of its `anyOf` or `oneOf`, to close an object that obeys this one.

    Raises:
        SchemaError: The names of the evaluated properties depend on the value.
    """
    if all(key in node for key in _BRANCHES):
        raise SchemaError(path)
    outer = {key: value for key, value in node.items() if key not in _BRANCHES}
    del outer["unevaluatedProperties"]
    names: dict[str, Any] = {}
    for part in (outer, branch):
        if not _add_names(part, path, follow, names):
            return None
    return {"properties": names, "additionalProperties": False}


def _add_names(
    node: Any, path: Path, follow: Callable[[Any], Any], names: dict[str, Any], depth: int = 0
) -> bool:
    """Collects the names that a schema evaluates; False if it evaluates all."""
    if not isinstance(node, dict):
        return True
    if depth > _DEEPEST or not _CONDITIONAL.isdisjoint(node):
        raise SchemaError(path)
    for key in ("additionalProperties", "unevaluatedProperties"):
        if node.get(key, False) is not False:
            return False
    names |= dict.fromkeys(node.get("properties", ()), True)
    inner = list(node.get("allOf", ()))
    if "$ref" in node:
        inner.append(follow(node["$ref"]))
    return all(_add_names(part, path, follow, names, depth + 1) for part in inner)
