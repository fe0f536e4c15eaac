"""Compares a text with the words that it must have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

Problem = tuple[str, str]
"""A class of bench.soak.judge, and what is wrong."""

_WORD: Final = re.compile(r"q(\d+)p(\d+)\.(\d+)")


def check_text(words: Sequence[str], text: str, *, complete: bool) -> list[Problem]:
    """Compares a text with the words of a plan.

    Args:
        words: Such as "q17p0.3": word 3 of prompt 0 of request 17.
        text: The received text.
        complete: Whether it claims to be all words; otherwise the first ones are enough.
    """
    expected = " ".join(words)
    if text == expected or (not complete and expected.startswith(text)):
        return []
    own = _WORD.match(words[0])
    found = _WORD.findall(text)
    if own is None:
        raise ValueError(f"a word without a place: {words[0]!r}")
    shown = f"{own[0]}: {len(found)} of {len(words)} words, ...{text[-60:]!r}"
    foreign = ["q{}p{}.{}".format(*place) for place in found if place[:2] != own.groups()[:2]]
    if foreign:
        return [("misdelivered", f"{own[0]}: has {', '.join(foreign[:3])}")]
    positions = [int(place[2]) for place in found]
    if len(set(positions)) < len(positions):
        return [("duplicated", shown)]
    if len(positions) < len(words) and _has_only(words, text, positions):
        return [("lost", shown)]
    return [("corrupted", shown)]


def _has_only(words: Sequence[str], text: str, positions: list[int]) -> bool:
    """Whether the text is what is left of the words when some are taken out."""
    kept = [words[position] for position in positions if position < len(words)]
    return text.split() == " ".join(kept).split()
