"""Types that the request schemas of several endpoints share."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from contract.limits import MAX_NAME_CHARACTERS

UINT32_MAX: Final = 2**32 - 1


INT32_MAX: Final = 2**31 - 1


INT64_MAX: Final = 2**63 - 1


Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+\Z", max_length=MAX_NAME_CHARACTERS)]


TokenId = Annotated[int, Meta(ge=0, le=UINT32_MAX)]


Count = Annotated[int, Meta(ge=0, le=UINT32_MAX)]


PositiveCount = Annotated[int, Meta(ge=1, le=UINT32_MAX)]


Seed = Annotated[int, Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]


# Any JSON, kept as text: key order and large numbers survive, and nothing is built of it.
AnyJson = Raw | UnsetType


ABSENT: Final = UNSET


# Checked after decoding, where OpenAI has words of its own; stated here for /openapi.json.
Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]


TokenIdText = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9]{1,10}$"})]


AnyObject = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


NullableObject = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})] | UnsetType


ObjectOrText = (
    Annotated[Raw, Meta(extra_json_schema={"type": ["object", "string", "null"]})] | UnsetType
)


class Strict(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An object that refuses members it does not know."""


class NotOffered(Strict):
    """A form of something that is known and always refused by name."""
