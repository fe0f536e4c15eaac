"""References that lead back to themselves, so that no value ends.

An object that needs another one of its kind, and so on, has no finite value. llguidance compiles
its grammar, which then stops in the middle of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from inference.engines.json_schema.errors import Path
from inference.engines.json_schema.meeting import types

Ends = Callable[[Any], bool]


def endless_reference(root: Any, parts: dict[Path, Any]) -> Path | None:
    """The path of a `$ref` to a schema without a finite value; None if there is none.

    Args:
        root: A rewritten schema.
        parts: All that the rewriter has visited, by their paths.
    """
    schemas = {path: part for path, part in parts.items() if isinstance(part, dict)}
    anchors = {f"#{part['$anchor']}": part for part in schemas.values() if "$anchor" in part}
    found = {part["$ref"]: (*path, "$ref") for path, part in schemas.items() if "$ref" in part}
    finite: set[str] = set()

    def ends(node: Any) -> bool:
        if not isinstance(node, dict):
            return True
        return (
            ("$ref" not in node or node["$ref"] in finite)
            and all(map(ends, node.get("allOf", ())))
            and any(map(ends, node.get("anyOf", (True,))))
            and _ends_itself(node, ends)
        )

    waiting = list(found)
    while waiting:
        left = []
        for reference in waiting:
            if ends(anchors.get(reference, _target(root, reference))):
                finite.add(reference)
            else:
                left.append(reference)
        if len(left) == len(waiting):
            return next(path for reference, path in found.items() if reference in left)
        # A chain of definitions, in whichever order, takes two passes instead of one for each.
        waiting = left[::-1]
    return None


def _target(root: Any, reference: str) -> Any:
    """The part that a reference like "#/$defs/A" points at; True if there is none."""
    part = root
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isdecimal() and int(name) < len(part):
            part = part[int(name)]
        else:
            part = part.get(name, True) if isinstance(part, dict) else True
    return part if reference == "#" or reference.startswith("#/") else True


def _ends_itself(node: dict[str, Any], ends: Ends) -> bool:
    """Whether a schema has a finite value as far as its own type, properties and items say."""
    kinds = types(node)
    if "enum" in node or "const" in node:
        return True
    if not kinds:
        # A schema that it meets may name the type.
        return _ends_as_object(node, ends) and _ends_as_array(node, ends)
    if kinds - {"object", "array"}:
        return True
    return ("object" in kinds and _ends_as_object(node, ends)) or (
        "array" in kinds and _ends_as_array(node, ends)
    )


def _ends_as_object(node: dict[str, Any], ends: Ends) -> bool:
    rest = node.get("additionalProperties", True)
    others = [*node.get("patternProperties", {}).values(), *([] if rest is False else [rest])]
    properties = node.get("properties", {})
    required = node.get("required", ())
    some_other = any(map(ends, others))
    if not all(
        ends(properties[name]) if name in properties else some_other or not others
        for name in required
    ):
        return False
    optional = sum(ends(schema) for name, schema in properties.items() if name not in required)
    return some_other or len(required) + optional >= node.get("minProperties", 0)


def _ends_as_array(node: dict[str, Any], ends: Ends) -> bool:
    items = node.get("items", True)
    first, rest = node.get("prefixItems", []), items
    if isinstance(items, list):
        first, rest = items, node.get("additionalItems", True)
    least = node.get("minItems", 0)
    return all(map(ends, first[:least])) and (least <= len(first) or ends(rest))
