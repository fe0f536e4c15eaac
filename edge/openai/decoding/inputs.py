"""Texts and token sequences, in the four forms that completions and embeddings take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, cast

from msgspec import Meta

from edge.openai.decoding.types import TokenId

Input = str | list[int]


def read_inputs(value: str | Sequence[str | int | list[int]]) -> list[Input] | None:
    """One entry an input; None where a list mixes forms.

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


MAX_PROMPTS: Final = 2048


TokenIdList = Annotated[list[TokenId], Meta(min_length=1)]


# A list holds strings, token ids or lists of token ids, but never two of these.
_ONE_FORM: Final = [
    {"items": {"type": "integer"}},
    {"items": {"type": "string"}, "maxItems": MAX_PROMPTS},
    {"items": {"type": "array"}, "maxItems": MAX_PROMPTS},
]


PromptList = Annotated[
    list[str | TokenId | TokenIdList], Meta(min_length=1, extra_json_schema={"anyOf": _ONE_FORM})
]
