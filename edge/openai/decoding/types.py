"""Types that the request schemas of several endpoints share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from contract.limits import MAX_NAME_CHARACTERS
from isthmus.v1.generate_pb2 import TRUNCATION_SIDE_LEFT, TRUNCATION_SIDE_RIGHT

UINT32_MAX: Final = 2**32 - 1
INT32_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
MAX_PROMPTS: Final = 2048

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+\Z", max_length=MAX_NAME_CHARACTERS)]
TokenId = Annotated[int, Meta(ge=0, le=UINT32_MAX)]
Count = Annotated[int, Meta(ge=0, le=UINT32_MAX)]
PositiveCount = Annotated[int, Meta(ge=1, le=UINT32_MAX)]
# Tokens of a prompt to keep; -1 for as many as the model takes, and 0 is refused by the service.
TruncatedTokens = Annotated[int, Meta(ge=-1, le=INT32_MAX, extra_json_schema={"not": {"const": 0}})]
TruncationSide = Literal["left", "right"]
TRUNCATION_SIDES: Final = {
    "left": TRUNCATION_SIDE_LEFT,
    "right": TRUNCATION_SIDE_RIGHT,
}
Seed = Annotated[int, Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]

# Any JSON, kept as text: it preserves key order and large numbers and creates no objects.
AnyJson = Raw | UnsetType
ABSENT: Final = UNSET

# `extra_json_schema` is for /openapi.json: these rules are checked after decoding, with OpenAI's
# own texts.
Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
# The text of one user message. White space alone is refused; what begins like JSON has to be a list
# of messages, which no pattern describes.
MessageText = Annotated[str, Meta(extra_json_schema={"pattern": r"^\s*[^\s\[{]"})]
TokenIdText = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9]{1,10}$"})]
AnyObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
NullableObject = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})] | UnsetType
ObjectOrText = (
    Annotated[Raw, Meta(extra_json_schema={"type": ["object", "string", "null"]})] | UnsetType
)

# The values that a member without effect may have: null and an empty list.
Nothing = Annotated[list[Raw], Meta(max_length=0)] | None

# A list holds strings, token ids or lists of token ids, but never two of these.
_ONE_FORM: Final = [
    {"items": {"type": "integer"}},
    {"items": {"type": "string"}, "maxItems": MAX_PROMPTS},
    {"items": {"type": "array"}, "maxItems": MAX_PROMPTS},
]
PromptList = Annotated[
    list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]],
    Meta(min_length=1, extra_json_schema={"anyOf": _ONE_FORM}),
]
Input = str | list[int]


def read_inputs(value: str | Sequence[str | int | list[int]]) -> list[Input] | None:
    """The inputs of a request; None if a list mixes forms.

    A flat list of integers is one sequence of tokens.
    """
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value))
    if kinds == {int}:
        return [cast("list[int]", value)]
    if kinds in ({str}, {list}):
        return cast("list[Input]", value)
    return None


class Strict(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An object that refuses unknown parameters."""


class NotOffered(Strict):
    """A type of OpenAI's API that is unsupported and always refused by name."""


StructT = TypeVar("StructT", bound=Struct)


def extended(
    struct: type[StructT],
    fields: Iterable[tuple[str, Any, Any]],
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> type[StructT]:
    """A subclass with the same name and tag.

    Args:
        struct: The base.
        fields: Name, type and default of each field that is added.
        attributes: Class attributes.
        options: Options of msgspec.defstruct.
    """
    config = struct.__struct_config__
    subclass = msgspec.defstruct(
        struct.__name__,
        fields,
        bases=(struct,),
        namespace={"__doc__": struct.__doc__, **(attributes or {})},
        module=struct.__module__,
        kw_only=True,
        tag_field=config.tag_field,
        tag=config.tag,
        gc=False,
        **options,
    )
    return cast("type[StructT]", subclass)


def accepting(
    *advice: str, nothing: Sequence[str] = ()
) -> Callable[[type[StructT]], type[StructT]]:
    """Adds members that are accepted without effect.

    Args:
        advice: Names of members with any value.
        nothing: Names of members that may only be null or []; any other value is an unknown
            parameter.
    """

    def add(struct: type[StructT]) -> type[StructT]:
        members = [(name, AnyJson, ABSENT) for name in advice]
        return extended(struct, [*members, *((name, Nothing, None) for name in nothing)])

    return add
