"""GET and DELETE /v1/responses/{id}, and GET /v1/responses/{id}/input_items."""

from __future__ import annotations

from typing import Final, Literal

from aiohttp import web

from contract.memory import Holding
from contract.refusals import out_of_range, shown, unknown_choice, unsupported_parameter
from edge.exchange.json_response import document_response
from edge.openai.errors import OpenAIError
from edge.openai.errors.http import references_too_large
from edge.openai.responses.stored import DeletedResponse, Kept, item_list, not_found
from edge.openai.text.translator import encode
from edge.response_store import KeyResponses
from edge.state import EdgeRequest

_DEFAULT_ITEMS: Final = 20
_MAX_ITEMS: Final = 100


async def get_response(request: EdgeRequest) -> web.StreamResponse:
    """GET /v1/responses/{id}.

    Raises:
        OpenAIError: 404, it is not kept; 400, its events are asked for.
    """
    if request.query.get("stream", "false") != "false":
        raise OpenAIError.of(unsupported_parameter("stream"))
    return document_response(request, _kept(request).document)


async def delete_response(request: EdgeRequest) -> web.StreamResponse:
    """DELETE /v1/responses/{id}.

    Raises:
        OpenAIError: 404, it is not kept.
    """
    response_id = request.match_info["id"]
    kept = kept_responses(request)
    if kept is None or not kept.delete(response_id):
        raise not_found(response_id)
    return document_response(request, encode(DeletedResponse(id=response_id)))


async def list_input_items(request: EdgeRequest) -> web.StreamResponse:
    """GET /v1/responses/{id}/input_items: a page of them.

    Raises:
        OpenAIError: 404, the response is not kept; 400.
    """
    kept = _kept(request)
    after = request.query.get("after", "")
    return document_response(
        request, item_list(kept, limit=_limit(request), order=_order(request), after=after)
    )


def kept_responses(request: EdgeRequest) -> KeyResponses | None:
    """The responses of the request's key; None if the edge keeps none."""
    store = request.edge.responses
    return None if store is None else store.of(request.principal)


class ReferredResponses:
    """The responses of a key, for one request. What it refers to counts as if its body had it.

    Args:
        kept: The responses.
        holding: Of the request.
        limit: Bytes of all that it refers to.
    """

    def __init__(self, kept: KeyResponses, holding: Holding, limit: int) -> None:
        self._kept = kept
        self._holding = holding
        self._limit = limit
        self._referred = 0

    def response(self, response_id: str) -> Kept | None:
        found = self._kept.response(response_id)
        if found is not None:
            self._count(sum(map(len, found.items)), "previous_response_id")
        return found

    def item(self, item_id: str) -> bytes | None:
        found = self._kept.item(item_id)
        if found is not None:
            self._count(len(found), "input")
        return found

    def keep(self, response_id: str, kept: Kept) -> None:
        self._kept.keep(response_id, kept)

    def _count(self, size: int, param: str) -> None:
        """Counts it before it is decoded.

        Raises:
            OpenAIError: 413.
            MemorySpentError: `memory_budget_bytes` has no room for it.
        """
        self._referred += size
        if self._referred > self._limit:
            raise references_too_large(self._limit, param)
        self._holding.take(size)


def referred_responses(request: EdgeRequest) -> ReferredResponses | None:
    """The kept responses that the request may refer to; None if the edge keeps none."""
    kept = kept_responses(request)
    if kept is None:
        return None
    limit = request.edge.config.max_body_bytes
    return ReferredResponses(kept, request.connection.holding, limit)


def _kept(request: EdgeRequest) -> Kept:
    response_id = request.match_info["id"]
    kept = kept_responses(request)
    found = None if kept is None else kept.response(response_id)
    if found is None:
        raise not_found(response_id)
    return found


def _limit(request: EdgeRequest) -> int:
    text = request.query.get("limit", str(_DEFAULT_ITEMS))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= number <= _MAX_ITEMS:
        bound = ">= 1" if number < 1 else f"<= {_MAX_ITEMS}"
        raise OpenAIError.of(out_of_range("limit", "integer", bound, shown(text)))
    return number


def _order(request: EdgeRequest) -> Literal["asc", "desc"]:
    match request.query.get("order", "desc"):
        case "asc":
            return "asc"
        case "desc":
            return "desc"
        case other:
            raise OpenAIError.of(unknown_choice("order", f"'{shown(other)}'", ("asc", "desc")))
