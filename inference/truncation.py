"""Prompts and inputs that are cut to a number of tokens, because the request says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from contract.refusals import unsupported_parameter
from inference.errors import InferenceError, below
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import (
    TRUNCATION_SIDE_RIGHT,
    GenerateRequest,
    TruncationSide,
)

_PARAM: Final = "truncate_prompt_tokens"


def check_truncation(request: GenerateRequest | EmbedRequest) -> None:
    """Refuses a number of tokens that is neither positive nor -1, and a chat, which has marks."""
    if isinstance(request, GenerateRequest) and request.HasField("chat"):
        raise InferenceError.of(unsupported_parameter(_PARAM))
    if (tokens := request.truncate_prompt_tokens) < -1 or tokens == 0:
        raise below(_PARAM, 1, tokens)


def kept_tokens(request: GenerateRequest, context_length: int) -> int | None:
    """The most tokens of a prompt that are kept; None if it must not be cut."""
    if not request.HasField(_PARAM):
        return None
    if request.truncate_prompt_tokens > 0:
        return request.truncate_prompt_tokens
    return max(context_length - max(request.stopping.max_tokens, 1), 1)


def cut(whole: Sequence[Any], length: int, side: TruncationSide) -> Any:
    """At most `length` characters or tokens of a prompt; without a side, the last ones."""
    return whole[:length] if side == TRUNCATION_SIDE_RIGHT else whole[-length:]


def side_name(side: TruncationSide) -> str:
    return "right" if side == TRUNCATION_SIDE_RIGHT else "left"
