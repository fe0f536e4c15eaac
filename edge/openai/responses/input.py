"""Decodes the input items of a response one by one, because messages may leave out their type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from contract import refusals
from contract.limits import MAX_MESSAGES
from contract.refusals import shown
from edge.openai.decoding.decoder import Schema
from edge.openai.errors import OpenAIError
from edge.openai.responses import item_schema as schema
from edge.openai.responses.stored import Store
from edge.openai.text.translator import encode

_ITEM: Final[Schema[schema.InputItem]] = Schema(schema.InputItem)
_INPUT: Final[Schema[str | list[Raw]]] = Schema(str | list[Raw])
_MESSAGE: Final = b'{"type":"message",'


class _Kind(Struct):
    """The members of an item from which its type follows."""

    type: str | None = None
    role: str | None = None
    id: str | None = None


_KIND: Final = msgspec.json.Decoder(_Kind)


class Input(Struct, gc=False):
    """The input, with the items of an earlier response before it.

    Attributes:
        items: All items.
        texts: Their JSON.
        earlier: How many of them are of earlier responses.
    """

    items: list[schema.InputItem]
    texts: list[bytes]
    earlier: int


def read_input(
    value: Raw, *, ignore_unknown: bool, store: Store | None = None, before: Sequence[bytes] = ()
) -> Input:
    """Decodes `input`; a text is one message of the user.

    Args:
        value: The parameter.
        ignore_unknown: Drops unknown parameters instead of refusing them.
        store: Has the items that are referred to.
        before: JSON of the items of an earlier response.

    Raises:
        OpenAIError: 400; 404, an item that is referred to is not kept.
    """
    texts = _texts(value, store)
    items = [
        _ITEM.decode(text, ignore_unknown=ignore_unknown, at=f"input[{i}]")
        for i, text in enumerate([*before, *texts], start=-len(before))
    ]
    return Input(items, [*before, *texts], len(before))


def _texts(value: Raw, store: Store | None) -> list[bytes]:
    items = _INPUT.decode(bytes(value), at="input")
    if isinstance(items, str):
        content = [{"type": "input_text", "text": items}]
        return [encode({"type": "message", "role": "user", "content": content})]
    if not items:
        raise OpenAIError.of(refusals.empty_array("input"))
    if len(items) > MAX_MESSAGES:
        raise OpenAIError.of(refusals.array_too_long("input", MAX_MESSAGES, len(items)))
    return [_resolved(bytes(item), store, f"input[{i}]") for i, item in enumerate(items)]


def _resolved(item: bytes, store: Store | None, place: str) -> bytes:
    """The item with its type, which messages may leave out, or the kept one that it refers to."""
    try:
        kind = _KIND.decode(item)
    except msgspec.ValidationError:
        return item  # Its decoder explains the fault.
    if kind.type is None and kind.role is not None:
        return _MESSAGE + item[1:]
    if store is None or kind.id is None or kind.type not in ("item_reference", None):
        return item
    found = store.item(kind.id)
    if found is None:
        message = f"Item with id '{shown(kind.id)}' not found."
        raise OpenAIError(404, message, param=f"{place}.id")
    return found
