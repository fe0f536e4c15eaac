"""Decodes bodies to typed requests; invalid bodies get OpenAI's errors.

Null means absent for every optional member of every schema; `Schema` checks at import that the
types say so. A member with the default "" is required, and its absence has an error of its own.

msgspec checks syntax and types in one pass and stops at the first fault;
`errors.validation.explain` converts that fault to OpenAI's error.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType, ValidationError
from msgspec import inspect as mi

from contract.refusals import unsupported_parameter
from edge.openai import errors
from edge.openai.decoding.types import ABSENT, AnyJson, Nothing, Strict, extended
from edge.openai.errors import OpenAIError
from edge.openai.errors.place import unusable_text
from edge.openai.errors.validation import explain

T = TypeVar("T")

# Arrays of a body. A megabyte of tiny lists would block the event loop for a quarter second.
MAX_ARRAYS: Final = 32_768
# Entries of objects and arrays: the token ids of a context of a million tokens.
MAX_ENTRIES: Final = 1 << 20
# Strings of a body, property names included.
MAX_STRINGS: Final = 1 << 18
# Matches to the end if the closing quote is missing, so that no text is scanned twice.
_STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)


class Schema(Generic[T]):
    """A type of request bodies, with a strict and a lenient decoder."""

    def __init__(self, type_: Any) -> None:
        self._info = mi.type_info(type_)
        _check_nullable(self._info)
        self._strict: msgspec.json.Decoder[T] = msgspec.json.Decoder(type_)
        self._lenient: msgspec.json.Decoder[T] = msgspec.json.Decoder(_lenient(type_))

    def decode(self, body: bytes | str, *, ignore_unknown: bool = False, at: str = "") -> T:
        """Reads one JSON document.

        Args:
            body: The document.
            ignore_unknown: Drops unknown parameters instead of refusing them.
            at: Path of the document inside the request body, for errors.

        Raises:
            OpenAIError: 400, the document is not JSON or does not fit the schema.
        """
        decoder = self._lenient if ignore_unknown else self._strict
        try:
            # The decoder does not check the encoding of values that it skips or keeps as text.
            if isinstance(body, bytes) and not body.isascii():
                body.decode()
            _check_counts(body)
            return decoder.decode(body)
        except ValidationError as fault:
            # A syntax error after the type error takes precedence.
            check_syntax(body)
            raise explain(str(fault), self._info, body, at) from fault
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise _not_json(body, fault) from fault


def _check_counts(body: bytes | str) -> None:
    """Refuses a body with too many values: decoding them would block the event loop."""
    if len(body) <= MAX_ARRAYS:
        return
    document = body.encode() if isinstance(body, str) else body
    # Nearly all bodies pass this fast upper estimate, which includes characters within strings.
    if (
        document.count(b"[") <= MAX_ARRAYS
        and document.count(b",") <= MAX_ENTRIES
        and document.count(b'"') <= 2 * MAX_STRINGS
    ):
        return
    bare, strings = _STRINGS.subn(b"", document, MAX_STRINGS + 1)
    for kind, count, limit in (
        ("strings", strings, MAX_STRINGS),
        ("arrays", bare.count(b"["), MAX_ARRAYS),
        ("entries", bare.count(b","), MAX_ENTRIES),
    ):
        if count > limit:
            check_syntax(body)
            raise errors.invalid_request(
                f"The request holds too many {kind}. The maximum is {limit}.",
                None,
                "array_above_max_length",
            )


def is_given(value: AnyJson) -> TypeGuard[Raw]:
    """Whether a parameter kept as text was sent and is not null."""
    return value is not ABSENT and bytes(value) != b"null"


def check_syntax(document: bytes | str) -> None:
    """Refuses text that is not exactly one JSON document.

    Raises:
        OpenAIError: 400.
    """
    try:
        msgspec.json.decode(document, type=Raw)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise _not_json(document, fault) from fault


def _not_json(document: bytes | str, fault: Exception) -> OpenAIError:
    return unusable_text(document.encode() if isinstance(document, str) else document, fault)


def _check_nullable(type_: mi.Type) -> None:
    """Raises TypeError if an optional member, at any depth, does not accept null."""
    match type_:
        case mi.StructType(cls=struct, fields=fields):
            for field in fields:
                if not field.required and field.default != "" and not _takes_null(field.type):
                    raise TypeError(f"{struct.__name__}.{field.name} does not accept null")
                _check_nullable(field.type)
        case mi.UnionType(types=inner):
            for each in inner:
                _check_nullable(each)
        case mi.ListType(item_type=item):
            _check_nullable(item)
        case mi.Metadata(type=plain):
            _check_nullable(plain)


def _takes_null(type_: mi.Type) -> bool:
    if isinstance(type_, mi.UnionType):
        return any(_takes_null(each) for each in type_.types)
    if isinstance(type_, mi.Metadata):
        return _takes_null(type_.type)
    return isinstance(type_, mi.NoneType | mi.RawType)


def _lenient(type_: Any) -> Any:
    """The same type, in which every object accepts unknown parameters."""
    if isinstance(type_, type) and issubclass(type_, Struct):
        return _lenient_struct(type_)
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is None or origin is Literal:
        return type_
    if origin is Annotated:
        return Annotated[(_lenient(arguments[0]), *arguments[1:])]
    inner = tuple(_lenient(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return Union[inner]  # noqa: UP007 - built from a tuple
    return origin[inner]


@cache
def _lenient_struct(struct: type[Struct]) -> type[Struct]:
    fields = [
        (
            field.name,
            AnyJson if field.type == Nothing else _lenient(field.type),
            msgspec.field(default=field.default),
        )
        for field in msgspec.structs.fields(struct)
    ]
    return extended(struct, fields, forbid_unknown_fields=False)


class Refusing(Strict):
    """An object with unsupported parameters; `refuse` adds them.

    Attributes:
        harmless: Name of each unsupported parameter, to the JSON texts that are accepted because
            they have no effect. null is always accepted.
    """

    harmless: ClassVar[Mapping[str, Sequence[bytes]]] = {}
    _values_of: ClassVar[Any]

    def check_refused(self, at: str = "") -> None:
        """Refuses the first unsupported parameter whose value would have an effect.

        Args:
            at: Path of this object with a trailing dot; empty for the body.

        Raises:
            OpenAIError: 400 `unsupported_parameter`.
        """
        values = self._values_of(self)
        # Nearly every request has no unsupported parameter.
        if values.count(ABSENT) == len(self.harmless):
            return
        for value, (name, harmless) in zip(values[1:], self.harmless.items(), strict=True):
            if value is ABSENT or bytes(value) in (b"null", *harmless):
                continue
            # The same value with white space in it.
            if msgspec.json.format(bytes(value), indent=-1) not in harmless:
                raise OpenAIError.of(unsupported_parameter(f"{at}{name}"))


RefusingT = TypeVar("RefusingT", bound=Refusing)


def refuse(**harmless: Sequence[bytes]) -> Callable[[type[RefusingT]], type[RefusingT]]:
    """Adds unsupported parameters, each with the JSON texts that have no effect."""

    def add(struct: type[RefusingT]) -> type[RefusingT]:
        fields = [(name, _refused_type(texts), ABSENT) for name, texts in harmless.items()]
        known = {**struct.harmless, **harmless}
        # `__class__` makes the result a tuple: for one name, attrgetter returns the bare value.
        values_of = attrgetter("__class__", *known)
        return extended(struct, fields, {"harmless": known, "_values_of": values_of})

    return add


def _refused_type(harmless: Sequence[bytes]) -> Any:
    values = [None, *map(msgspec.json.decode, sorted(harmless))]
    schema = {
        # 1 and 1.0 are the same number.
        "enum": [value for i, value in enumerate(values) if value not in values[:i]],
        "description": "Not offered: refused by name unless it asks for nothing.",
    }
    # With the texts, because typing would treat the types for 0 and False as one (0 == False).
    return Annotated[Raw, Meta(extra_json_schema=schema), *harmless] | UnsetType
