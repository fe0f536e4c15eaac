"""Decodes the input items of a response one by one, because messages may leave out their type."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct

from contract import refusals
from contract.limits import MAX_MESSAGES
from edge.openai.decoding.decoder import Schema
from edge.openai.errors import OpenAIError
from edge.openai.responses import item_schema as schema

_ITEM: Final[Schema[schema.InputItem]] = Schema(schema.InputItem)
_INPUT: Final[Schema[str | list[Raw]]] = Schema(str | list[Raw])
_MESSAGE: Final = b'{"type":"message",'


class _Kind(Struct):
    """What tells the type of an item."""

    type: str | None = None
    role: str | None = None


_KIND: Final = msgspec.json.Decoder(_Kind)


def read_input(value: Raw, *, ignore_unknown: bool) -> list[schema.InputItem]:
    """Decodes `input`; a text is one message of the user.

    Raises:
        OpenAIError: 400.
    """
    items = _INPUT.decode(bytes(value), at="input")
    if isinstance(items, str):
        return [schema.InputMessage(role="user", content=items)]
    if not items:
        raise OpenAIError.of(refusals.empty_array("input"))
    if len(items) > MAX_MESSAGES:
        raise OpenAIError.of(refusals.array_too_long("input", MAX_MESSAGES, len(items)))
    return [
        _ITEM.decode(_with_type(bytes(item)), ignore_unknown=ignore_unknown, at=f"input[{i}]")
        for i, item in enumerate(items)
    ]


def _with_type(item: bytes) -> bytes:
    """The item with its type, which messages may leave out."""
    try:
        kind = _KIND.decode(item)
    except msgspec.ValidationError:
        return item  # Its decoder explains the fault.
    if kind.type is None and kind.role is not None:
        return _MESSAGE + item[1:]
    return item
