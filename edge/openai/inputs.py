"""Texts and token sequences, in the four forms that completions and embeddings take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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
