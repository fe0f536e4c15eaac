"""Finds schemas that apply to one value together, and those that exclude each other."""

from __future__ import annotations

from typing import Any, Final

# Keywords whose schemas apply to the same value as the schema that has them.
IN_PLACE: Final = (
    *("allOf", "anyOf", "oneOf", "$ref", "dependentRequired", "dependentSchemas"),
    *("dependencies", "if", "not", "$dynamicRef"),
)
# Pairs of branches are compared, which takes about 10 microseconds each.
_MOST_BRANCHES: Final = 300
NUMBERS: Final = (*("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),)
_ARRAY: Final = (*("items", "prefixItems", "additionalItems"),)
# Keywords about the properties of an object.
OBJECT: Final = (
    *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties"),
    *("required", "minProperties", "maxProperties", "propertyNames"),
)


def meets(node: dict[str, Any]) -> bool:
    """Whether a value that is no text obeys two schemas that have to be merged."""
    count = sum(1 for key in IN_PLACE if key in node) + ("if" in node)
    all_of = node.get("allOf")
    if isinstance(all_of, list):
        count += len(all_of) - 1
    return count + any(key in node for key in (*OBJECT, *NUMBERS, *_ARRAY)) > 1


def has_merged_reference(root: Any) -> bool:
    """Whether any `$ref` stands where schemas are merged."""
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        part, merged = todo.pop()
        if isinstance(part, list):
            todo += [(inner, merged) for inner in part]
        elif isinstance(part, dict):
            merged = merged or meets(part)
            if merged and "$ref" in part:
                return True
            todo += [(inner, merged) for inner in part.values()]
    return False


def types(node: Any) -> set[str]:
    """The types that a schema names; empty if it names none."""
    kind = node.get("type", ()) if isinstance(node, dict) else ()
    return {kind} if isinstance(kind, str) else set(kind)


def all_disjoint(branches: list[Any]) -> bool:
    """Whether it is certain that no value obeys two of the branches."""
    values = [scalars(node) for node in branches]
    if all(values):
        return len(set().union(*values)) == sum(map(len, values))
    if len(branches) > _MOST_BRANCHES:
        return False
    return all(disjoint(a, b) for i, a in enumerate(branches) for b in branches[i + 1 :])


def disjoint(a: Any, b: Any) -> bool:
    """Whether it is certain that no value obeys both."""
    if a is False or b is False:
        return True
    if not isinstance(a, dict) or not isinstance(b, dict) or "$ref" in a or "$ref" in b:
        return False
    if differ(a, b):
        return True
    first, second = types(a), types(b)
    if first and second:
        shared = first & second
        if {"integer", "number"} & first and {"integer", "number"} & second:
            shared.add("number")
        return not shared or (shared == {"object"} and _disjoint_objects(a, b))
    return False


def _disjoint_objects(a: dict[str, Any], b: dict[str, Any]) -> bool:
    for one, other in ((a, b), (b, a)):
        properties = other.get("properties", {})
        closed = other.get("additionalProperties") is False and "patternProperties" not in other
        for name in one.get("required", ()):
            if closed and name not in properties:
                return True
            if differ(one.get("properties", {}).get(name), properties.get(name)):
                return True
    return False


def differ(a: Any, b: Any) -> bool:
    """Whether both schemas are limited to a few scalars, and have none in common."""
    first, second = scalars(a), scalars(b)
    return bool(first) and bool(second) and not first & second


def scalars(node: Any) -> set[tuple[bool, Any]]:
    """The scalars that a schema is limited to; empty if it allows anything else.

    Each is with whether it is a boolean: to Python, True is 1.
    """
    if not isinstance(node, dict) or "$ref" in node:
        return set()  # Some drafts ignore what stands beside a reference.
    values = [node["const"]] if "const" in node else node.get("enum", [])
    if any(isinstance(value, (dict, list)) for value in values):
        return set()
    return {(isinstance(value, bool), value) for value in values}
