r"""`\b` at the beginning and the end of a pattern, as what must stand beside a word there."""

from __future__ import annotations

import re
from typing import Final

# A class, an escape, the beginning of a group, or any other character.
_UNIT: Final = re.compile(
    r"\[(?:\\.|[^\]\\])*\]|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[uUpPk]\{\w+\}|c[A-Za-z]|.)"
    r"|\((?:\?(?:[:=!]|<[=!]|P?<\w+>))?|.",
    re.DOTALL,
)
_WORD: Final = re.compile(
    r"[A-Za-z0-9_]|\\[wd]|\[(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9_]|\\[wd])+\]"
)
_BOUNDARY: Final = r"\b"
_BESIDE: Final = r"\W"


def without_boundaries(pattern: str) -> str:
    r"""The pattern with an equal for each `\b` that begins or ends it, beside a word."""
    units = _UNIT.findall(pattern)
    if _BOUNDARY not in units or len(_branches(units)) > 1:
        return pattern
    first, last = int(units[0] == "^"), len(units) - 1 - (units[-1] == "$")
    if last > first and units[last] == _BOUNDARY and _ends(units[first:last]):
        units[last:] = ["$"] if units[-1] == "$" else [f"(?:{_BESIDE}|$)"]
    if units[first] == _BOUNDARY and _begins(units[first + 1 :]):
        units[: first + 1] = ["^"] if first else [f"(?:^|{_BESIDE})"]
    return "".join(units)


def _begins(units: list[str]) -> bool:
    """Whether each match begins with a letter, a digit or an underscore."""
    if not units:
        return False
    if units[0].startswith("("):
        end = _group(units)
        inner = _branches(units[1:end])
        return not _may_lack(units[end + 1 :]) and all(map(_begins, inner))
    return _WORD.fullmatch(units[0]) is not None and not _may_lack(units[1:])


def _ends(units: list[str]) -> bool:
    """Whether each match ends with such a character."""
    if units and units[-1] == "+":
        units = units[:-1]
    if not units:
        return False
    if units[-1] == ")":
        begin = next((i for i in range(len(units)) if _group(units[i:]) == len(units) - 1 - i), 0)
        plain = units[begin] in ("(", "(?:")
        return plain and all(map(_ends, _branches(units[begin + 1 : -1])))
    return _WORD.fullmatch(units[-1]) is not None


def _may_lack(following: list[str]) -> bool:
    """Whether a quantifier may leave out what stands before it."""
    return following[:1] in (["*"], ["?"]) or following[:2] == ["{", "0"]


def _group(units: list[str]) -> int:
    """The index at which a group ends that the first unit begins; -1 if it begins none."""
    depth = 0
    for index, unit in enumerate(units):
        depth += unit.startswith("(") - (unit == ")")
        if not depth:
            return index if index else -1
    return -1


def _branches(units: list[str]) -> list[list[str]]:
    """The branches between the `|` that stand in no group."""
    found: list[list[str]] = [[]]
    depth = 0
    for unit in units:
        depth += unit.startswith("(") - (unit == ")")
        if unit == "|" and not depth:
            found.append([])
        else:
            found[-1].append(unit)
    return found
