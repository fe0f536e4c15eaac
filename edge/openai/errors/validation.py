"""Converts msgspec's validation errors to OpenAI's errors.

msgspec reports a fault and its place as one line of text. The forms of that line are listed here
and checked by tests; a form not listed becomes a plain `invalid_value`. Values that OpenAI repeats
("but got 130 instead") are looked up along the path to the fault; the rest of the body is skipped.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import msgspec
from msgspec import Raw, Struct
from msgspec import inspect as mi

from contract import refusals
from contract.refusals import Refusal, shown
from edge.openai import errors
from edge.openai.errors import OpenAIError

_WHERE: Final = re.compile(r"(?:key` in `)?\$((?:\.\w+|\[\d+\]|\[\.\.\.\])*)`")
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_TYPE: Final = re.compile(r"Expected `[^`]*`(?:, got `(\w+)`)?")
_VALUE: Final = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_BOUND: Final = re.compile(r"Expected `(int|float)(?: \| null)?` ([<>]=?) (\S+)")
_LENGTH: Final = re.compile(r"Expected `(\w+)(?: \| null)?` of length ([<>]=) (\d+)")
_PATTERN: Final = re.compile(r"Expected `str(?: \| null)?` matching regex .*", re.DOTALL)

_GOT: Final = {
    "null": "null",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a decimal",
    "str": "a string",
    "array": "an array",
    "object": "an object",
}
# Entries of longer arrays are not looked up, because msgspec would decode all of them.
_READ_BYTES: Final = 65_536


def explain(fault: str, type_: mi.Type, body: bytes | str, at: str) -> OpenAIError:
    """The 400 for a validation error.

    Args:
        fault: msgspec's text.
        type_: The type that `body` was decoded to.
        body: The document, which is valid JSON.
        at: Path of the document inside the request body.
    """
    what, _, where = fault.rpartition(" - at `")
    match = _WHERE.fullmatch(where)
    path = match[1] if match else ""
    if not match:
        what = fault
    # OpenAI's paths do not name the entries of a mapping: they end at the mapping.
    param = (at + path.replace("[...]", "")).removeprefix(".")
    if not param and _TYPE.fullmatch(what):
        return errors.invalid_json()
    return _explain_at(what, path, param, type_, body)


def _explain_at(what: str, path: str, param: str, type_: mi.Type, body: bytes | str) -> OpenAIError:
    if match := _UNKNOWN.fullmatch(what):
        return errors.unknown_parameter(_joined(param, shown(match[1].removesuffix("`"))))
    if match := _MISSING.fullmatch(what):
        return OpenAIError.of(refusals.missing_parameter(_joined(param, match[1])))
    accepted, value = _follow(path, type_, body)
    if _is_nothing(accepted):
        return errors.unknown_parameter(param)
    if match := _TYPE.fullmatch(what):
        return _wrong_type(param, accepted, match[1])
    if match := _VALUE.fullmatch(what):
        choices = _literals(accepted)
        return OpenAIError.of(refusals.unknown_choice(param, shown(match[1]), choices))
    if match := _BOUND.fullmatch(what):
        return OpenAIError.of(_out_of_bounds(param, match, shown(value.decode())))
    if match := _LENGTH.fullmatch(what):
        return OpenAIError.of(_wrong_length(param, match, value))
    if _PATTERN.fullmatch(what):
        return OpenAIError.of(refusals.invalid_name(param))
    # All other faults are numbers beyond the range of a double or an integer.
    return errors.invalid_request(
        f"Invalid '{param}': the value cannot be used.", param or None, "invalid_value"
    )


def _is_nothing(accepted: list[mi.Type]) -> bool:
    """Whether the schema accepts nothing but null and [] (decoding.types.Nothing)."""
    return all(isinstance(type_, mi.ListType) and type_.max_length == 0 for type_ in accepted) and (
        bool(accepted)
    )


def _joined(param: str, name: str) -> str:
    return f"{param}.{name}" if param else name


def _wrong_type(param: str, accepted: list[mi.Type], got: str | None) -> OpenAIError:
    names = list(dict.fromkeys(_type_name(type_) for type_ in accepted)) or ["value"]
    if len(names) == 1:
        expected = _with_article(names[0])
    else:
        expected = f"one of {_with_article(names[0])} or {' or '.join(names[1:])}"
    seen = f", but got {_GOT.get(got, got)} instead" if got else ""
    return errors.invalid_request(
        f"Invalid type for '{param}': expected {expected}{seen}.", param, "invalid_type"
    )


def _out_of_bounds(param: str, bound: re.Match[str], value: str) -> Refusal:
    kind = "integer" if bound[1] == "int" else "decimal"
    expected = f"{bound[2]} {bound[3].removesuffix('.0')}"
    return refusals.out_of_range(param, kind, expected, value)


def _wrong_length(param: str, bound: re.Match[str], value: bytes) -> Refusal:
    kind, relation, limit = bound[1], bound[2], int(bound[3])
    if kind == "array" and relation == ">=":
        return refusals.empty_array(param)
    if kind == "array":
        return refusals.array_too_long(param, limit, len(_entries(value)) or None)
    if kind == "str" and relation == ">=":
        return refusals.empty_string(param)
    if kind == "str":
        return refusals.string_too_long(param, limit)
    return refusals.too_many_properties(param, limit)


def _follow(path: str, type_: mi.Type, body: bytes | str) -> tuple[list[mi.Type], bytes]:
    """The types that the schema accepts at a path, without null, and the document's value there.

    The value is empty if finding it costs too much. If the document has a property twice, it may
    be the wrong one of the two.
    """
    accepted = _flat(type_)
    value = body.encode() if isinstance(body, str) else body
    for name, index in _STEP.findall(path):
        accepted = [
            inner
            for outer in _tagged_alike(accepted, value)
            for inner in _flat(*_entered(outer, name))
        ]
        value = _property(value, name) if name else _entry(value, index)
    return accepted, value


def _tagged_alike(types: list[mi.Type], value: bytes) -> list[mi.Type]:
    """Filters tagged struct types by the document's tag; keeps all if none matches."""
    objects = [t for t in types if isinstance(t, mi.StructType) and t.tag_field]
    if not objects:
        return types
    tag = _property(value, objects[0].tag_field or "")
    return [t for t in objects if msgspec.json.encode(t.tag) == tag] or types


def _entered(type_: mi.Type, name: str) -> list[mi.Type]:
    match type_:
        case mi.StructType() if name and name == type_.tag_field:
            return [mi.LiteralType((type_.tag,))] if isinstance(type_.tag, str) else []
        case mi.StructType():
            return [field.type for field in type_.fields if field.encode_name == name]
        case mi.ListType() if not name:
            return [type_.item_type]
        case mi.DictType() if not name:
            return [type_.value_type]
    return []


def _flat(*types: mi.Type) -> list[mi.Type]:
    flat: list[mi.Type] = []
    for type_ in types:
        if isinstance(type_, mi.UnionType):
            flat += _flat(*type_.types)
        elif isinstance(type_, mi.Metadata):
            flat += _flat(type_.type)
        elif not isinstance(type_, mi.NoneType):
            flat.append(type_)
    return flat


def _literals(types: list[mi.Type]) -> list[str]:
    return list({str(v) for t in types if isinstance(t, mi.LiteralType) for v in t.values})


def _type_name(type_: mi.Type) -> str:
    match type_:
        case mi.StrType() | mi.LiteralType():
            return "string"
        case mi.IntType():
            return "integer"
        case mi.FloatType():
            return "decimal"
        case mi.BoolType():
            return "boolean"
        case mi.ListType():
            items = dict.fromkeys(_type_name(item) for item in _flat(type_.item_type))
            return "array of " + " or ".join(_plural(item) for item in items)
    return "object"


def _plural(name: str) -> str:
    return name.replace("array", "arrays", 1) if name.startswith("array") else f"{name}s"


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


@cache
def _only(name: str) -> type[Struct]:
    """A struct type that decodes one property of an object and skips the rest."""
    return msgspec.defstruct("_Only", [(name, Raw, Raw())])


def _property(value: bytes, name: str) -> bytes:
    """The JSON text of an object's property; empty if there is none."""
    try:
        return bytes(getattr(msgspec.json.decode(value, type=_only(name)), name))
    except msgspec.DecodeError:
        return b""


def _entries(value: bytes) -> list[Raw]:
    """The entries of an array; none if it is too long or not an array."""
    if len(value) > _READ_BYTES:
        return []
    try:
        return msgspec.json.decode(value, type=list[Raw])
    except msgspec.DecodeError:
        return []


def _entry(value: bytes, index: str) -> bytes:
    entries = _entries(value) if index.isdigit() else []
    return bytes(entries[int(index)]) if entries and int(index) < len(entries) else b""
