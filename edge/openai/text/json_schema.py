"""Reads and checks the JSON Schemas of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from contract import refusals
from contract.limits import MAX_SCHEMA_BYTES
from contract.refusals import shown
from edge.openai.errors import OpenAIError

_CLOSED: Final = "'additionalProperties' is required to be supplied and to be false."
_COMPLETE: Final = (
    "'required' is required to be supplied and to be an array including every key in properties."
)
# Keywords whose value is a schema, a list of schemas, or an object of schemas.
_ONE: Final = ("items", "not")
_MANY: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED: Final = ("properties", "$defs", "definitions")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object as the client's text, and decoded."""

    text: str
    value: dict[str, Any]


def read_object(value: Raw, param: str, *, text_allowed: bool = False) -> JsonObject:
    """Reads a parameter that is a JSON object or, with `text_allowed`, a string of one.

    Raises:
        OpenAIError: 400, not an object, too long or nested too deep.
    """
    data = bytes(value)
    if len(data) > MAX_SCHEMA_BYTES:
        raise OpenAIError.of(refusals.string_too_long(param, MAX_SCHEMA_BYTES))
    try:
        read = msgspec.json.decode(data)
        if isinstance(read, str) and text_allowed:
            data = read.encode()
            read = msgspec.json.decode(data)
        text = data.decode()
    except (msgspec.DecodeError, RecursionError) as fault:
        raise OpenAIError.of(refusals.unusable_object(param)) from fault
    if not isinstance(read, dict):
        raise OpenAIError.of(refusals.not_an_object(param))
    return JsonObject(text, read)


def root_fault(schema: dict[str, Any]) -> str | None:
    """Why the type of a schema's root is not "object"; None if it is."""
    kind = schema.get("type")
    return None if kind == "object" else refusals.wrong_root_type(kind)


def strict_fault(schema: dict[str, Any]) -> str | None:
    """Why a schema is not strict; None if it is.

    In a strict schema the root is an object, and every object is closed and requires all of its
    properties. The engine checks other keywords.
    """
    if fault := root_fault(schema):
        return fault
    todo: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), schema)]
    while todo:
        context, node = todo.pop()
        if fault := _object_fault(node):
            return f"In context={shown(repr(context), 256)}, {fault}"
        todo += reversed(_inner_schemas(context, node))
    return None


def _object_fault(node: dict[str, Any]) -> str | None:
    properties = node.get("properties")
    if node.get("type") != "object" and not isinstance(properties, dict):
        return None
    if node.get("additionalProperties") is not False:
        return _CLOSED
    names = list(properties) if isinstance(properties, dict) else []
    required = node.get("required", [] if not names else None)
    if not isinstance(required, list):
        return f"{_COMPLETE} Missing '{shown(names[0])}'." if names else _COMPLETE
    present = {name for name in required if isinstance(name, str)}
    missing = next((name for name in names if name not in present), None)
    return None if missing is None else f"{_COMPLETE} Missing '{shown(missing)}'."


def _inner_schemas(
    context: tuple[str, ...], node: dict[str, Any]
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key in _NAMED:
        inner = node.get(key)
        if isinstance(inner, dict):
            found += [((*context, key, name), schema) for name, schema in inner.items()]
    found += [((*context, key), node.get(key)) for key in _ONE]
    for key in _MANY:
        inner = node.get(key)
        if isinstance(inner, list):
            found += [((*context, key, str(i)), schema) for i, schema in enumerate(inner)]
    return [(place, schema) for place, schema in found if isinstance(schema, dict)]
