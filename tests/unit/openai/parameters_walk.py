"""Paths of all parameters of a request body: of our schemas and of the openai package's types.

`messages[user].content` is in those entries of `messages` whose role (or `type`) is "user";
`functions[].name` is in every entry; `tool_choice[function].function` is in an object, not a list.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec.inspect as mi
from typing_extensions import get_type_hints, is_typeddict


def schema_parameters(struct: Any) -> dict[str, mi.Type]:
    """The path and type of each parameter of a request schema."""
    return dict(_struct_parameters("", mi.type_info(struct), in_list=False))


def sdk_parameters(typed_dict: Any) -> dict[str, Any]:
    """The path and type of each parameter of one of the openai package's types."""
    return dict(_dict_parameters("", typed_dict, in_list=False))


def schema_literals(type_: mi.Type) -> set[Any] | None:
    """The strings that a parameter accepts; None if it accepts any."""
    found: set[Any] = set()
    for inner in flat(type_):
        if isinstance(inner, mi.LiteralType):
            found |= set(inner.values)
        elif isinstance(inner, mi.ListType):
            found |= schema_literals(inner.item_type) or set()
        elif isinstance(inner, mi.StrType | mi.RawType):
            return None
    return found


def schema_empties(type_: mi.Type) -> list[Any]:
    """[] if the parameter may be a list, {} if it may be an object without required members."""
    found: list[Any] = []
    for inner in flat(type_):
        if isinstance(inner, mi.ListType):
            found.append([])
        elif isinstance(inner, mi.DictType) or (
            isinstance(inner, mi.StructType)
            and not inner.tag_field
            and not any(field.required for field in inner.fields)
        ):
            found.append({})
    return found


def sdk_literals(type_: Any) -> set[Any]:
    """The strings that the openai package lists for a parameter."""
    if get_origin(type_) is Literal:
        return {value for value in get_args(type_) if isinstance(value, str)}
    return {value for inner in get_args(type_) for value in sdk_literals(inner)}


def is_known(path: str, parameters: Mapping[str, mi.Type]) -> bool:
    """True if a schema has the parameter, or accepts any JSON in a parameter that contains it."""
    if path in parameters:
        return True
    while "." in path:
        path = path.rpartition(".")[0]
        around = parameters.get(re.sub(r"\[\w*\]$", "", path), mi.AnyType())
        if any(isinstance(inner, mi.RawType) for inner in flat(around)):
            return True
    return False


def flat(type_: mi.Type) -> Iterator[mi.Type]:
    if isinstance(type_, mi.UnionType):
        for inner in type_.types:
            yield from flat(inner)
    elif isinstance(type_, mi.Metadata):
        yield from flat(type_.type)
    else:
        yield type_


def _struct_parameters(at: str, type_: mi.Type, *, in_list: bool) -> Iterator[tuple[str, mi.Type]]:
    for inner in flat(type_):
        if isinstance(inner, mi.ListType):
            yield from _struct_parameters(at, inner.item_type, in_list=True)
        elif isinstance(inner, mi.StructType):
            tag_name, tag = _struct_tag(inner)
            inside = _inside(at, tag, in_list)
            for field in inner.fields:
                path = inside + field.encode_name
                if field.encode_name == tag_name:
                    continue
                yield path, field.type
                yield from _struct_parameters(path, field.type, in_list=False)


def _struct_tag(type_: mi.StructType) -> tuple[str | None, object]:
    """Name and value of the struct's tag, or of a `type` field that allows one value only."""
    for field in type_.fields:
        if field.encode_name == "type" and isinstance(field.type, mi.LiteralType):
            return "type", field.type.values[0]
    return type_.tag_field, type_.tag


def _dict_parameters(at: str, type_: Any, *, in_list: bool) -> Iterator[tuple[str, Any]]:
    if is_typeddict(type_):
        hints: Mapping[str, Any] = get_type_hints(type_)
        tag_name, tag = _tag(hints)
        inside = _inside(at, tag, in_list)
        for name, hint in hints.items():
            if name != tag_name:
                yield inside + name, hint
                yield from _dict_parameters(inside + name, hint, in_list=False)
        return
    origin = get_origin(type_)
    if origin in (Literal, dict) or origin is None:
        return
    single = origin in (Union, types.UnionType, Annotated)
    for inner in get_args(type_):
        yield from _dict_parameters(at, inner, in_list=in_list or not single)


def _tag(hints: Mapping[str, Any]) -> tuple[str, str] | tuple[None, None]:
    for name in ("type", "role"):
        values = get_args(hints.get(name))
        if get_origin(hints.get(name)) is Literal and len(values) == 1:
            return name, values[0]
    return None, None


def _inside(at: str, tag: object, in_list: bool) -> str:
    if not at:
        return ""
    return f"{at}[{tag or ''}]." if tag or in_list else f"{at}."
