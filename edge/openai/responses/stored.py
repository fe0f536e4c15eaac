"""Kept responses: their form, and the lookups of later requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import Raw, Struct

from contract.refusals import shown
from edge.openai.errors import OpenAIError, invalid_request
from edge.openai.responses.output_schema import Response
from edge.openai.responses.response import ID_PREFIX
from edge.openai.text.translator import encode


class Kept(Struct, frozen=True, gc=False):
    """A finished response.

    Attributes:
        document: The response object as JSON.
        items: JSON of the whole conversation: of the input, with that of earlier responses, and of
            the output.
        item_ids: The id of each item.
        inputs: How many of the items are input.
    """

    document: bytes
    items: Sequence[bytes]
    item_ids: Sequence[str]
    inputs: int


class Store(Protocol):
    """The responses of one API key."""

    def response(self, response_id: str) -> Kept | None:
        """A response; None if there is none, or it is no longer kept."""
        ...

    def item(self, item_id: str) -> bytes | None:
        """The JSON of an item of any response; None if there is none."""
        ...

    def keep(self, response_id: str, kept: Kept) -> None:
        """Keeps a response; one that is larger than the whole store is dropped."""
        ...


class _Named(Struct):
    id: str | None = None


_NAMED = msgspec.json.Decoder(_Named)


def keeper(store: Store, inputs: Sequence[bytes]) -> Callable[[Response], None]:
    """A function that keeps a response which has ended; `inputs` are its whole conversation."""

    def keep(response: Response) -> None:
        outputs = [encode(item) for item in response.output]
        unique = response.id.removeprefix(ID_PREFIX)
        named = [_with_id(item, f"in_{unique}_{i}") for i, item in enumerate(inputs)]
        ids = [*(name for _, name in named), *(item.id for item in response.output)]
        items = [*(item for item, _ in named), *outputs]
        store.keep(response.id, Kept(encode(response), items, ids, len(named)))

    return keep


def _with_id(item: bytes, new_id: str) -> tuple[bytes, str]:
    """The item and its id, which is added if it has none."""
    if name := _NAMED.decode(item).id:
        return item, name
    members = msgspec.json.decode(item, type=dict[str, Raw])
    return encode({"id": new_id, **{k: v for k, v in members.items() if k != "id"}}), new_id


class ItemList(Struct, kw_only=True):
    """Items of a response's input."""

    object: str = "list"
    data: list[Raw]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(Struct, kw_only=True):
    """A response is no longer kept."""

    id: str
    object: str = "response"
    deleted: bool = True


def item_list(kept: Kept, *, limit: int, order: Literal["asc", "desc"], after: str) -> bytes:
    """A page of the input items.

    Args:
        kept: The response.
        limit: At most this many.
        order: "desc" begins with the last item.
        after: The id of the item before the page; "" begins with the first.

    Raises:
        OpenAIError: 400, no item has the id `after`.
    """
    entries = list(zip(kept.item_ids, kept.items, strict=True))[: kept.inputs]
    if order == "desc":
        entries.reverse()
    if after:
        place = next((i for i, (name, _) in enumerate(entries) if name == after), None)
        if place is None:
            raise invalid_request("No item has the id that 'after' names.", "after")
        entries = entries[place + 1 :]
    page = entries[:limit]
    return encode(
        ItemList(
            data=[Raw(item) for _, item in page],
            first_id=page[0][0] if page else None,
            last_id=page[-1][0] if page else None,
            has_more=len(entries) > limit,
        )
    )


def not_found(response_id: str) -> OpenAIError:
    """404: no such response, or it is another key's, or no longer kept."""
    return OpenAIError(404, f"Response with id '{shown(response_id)}' not found.")
