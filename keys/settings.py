"""Checks that the configurations of edge and inference service share: numbers and texts.

A number's range stands beside its type, as `Annotated[int, Range(0, 65535)]`; msgspec ignores it,
and `check_settings` reads it. So a value is checked the same way whether it comes from a file, from
the command line or from code, and the error names the member, the value and the range.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from keys.exposure import ConfigError

DAY: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have; NaN and the infinities are in no range.

    Attributes:
        lowest: The smallest value.
        highest: The largest value; None for no bound.
        open: Whether `lowest` itself is left out.
    """

    lowest: float
    highest: float | None = None
    open: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value) or value < self.lowest or (self.open and value == self.lowest):
            return False
        return self.highest is None or value <= self.highest

    def __str__(self) -> str:
        if self.highest is None:
            return f"{'above' if self.open else 'of at least'} {self.lowest:g}"
        if self.open:
            return f"above {self.lowest:g} and at most {self.highest}"
        return f"from {self.lowest:g} to {self.highest}"


# Seconds of a bound that must expire some time, and of a wait that may also be none.
Seconds = Annotated[float, Range(0, DAY, open=True)]
SecondsOrNone = Annotated[float, Range(0, DAY)]
Count = Annotated[int, Range(1)]


def check_settings(where: str, settings: Any, may_be_empty: Collection[str] = frozenset()) -> None:
    """Checks all numbers, texts and paths of a configuration.

    Args:
        where: Stands before the member's name in the error ("edge").
        settings: A struct whose class has annotated all its numbers with a Range.
        may_be_empty: Members for which an empty text has a meaning.

    Raises:
        ConfigError: A number is outside its range, or a text or the path of a file is empty.
    """
    kind: Any = type(settings)
    for name, member in _members(kind).items():
        value = getattr(settings, name)
        if member.range is not None:
            kinds = (int,) if member.whole else (int, float)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            if value is not None and not (is_number and value in member.range):
                noun = "whole number" if member.whole else "number"
                raise ConfigError(f"{where}.{name}: {value!r} is not a {noun} {member.range}")
        elif value == "" and name not in may_be_empty:
            raise ConfigError(f"{where}.{name}: must not be empty")
        elif isinstance(value, Path) and value == Path() and not name.endswith("_dir"):
            raise ConfigError(f"{where}.{name}: must name a file")


def values_of(kind: type, name: str) -> tuple[Range | None, set[Any]]:
    """The range of a member of a configuration, None if it is not a number, and its types."""
    return _parts(get_type_hints(kind, include_extras=True)[name])


def is_port(text: str, lowest: int = 0) -> bool:
    """Whether the text is the number of a TCP port."""
    return text.isascii() and text.isdecimal() and lowest <= int(text) <= 65535


def port_range(text: str) -> range:
    """The ports of "50051" or "50051-50054", from 1; none if the text is neither."""
    first, dash, last = text.partition("-")
    if not is_port(first, 1) or (dash and not is_port(last, 1)):
        return range(0)
    return range(int(first), int(last if dash else first) + 1)


def is_host_and_port(text: str, lowest: int = 0) -> bool:
    """Whether the text is HOST:PORT with a port of at least `lowest`."""
    host, _, port = text.rpartition(":")
    return bool(host) and is_port(port, lowest)


@dataclass(frozen=True, slots=True)
class _Member:
    """The check of a setting: the range of a number; None for other types."""

    range: Range | None
    whole: bool


@cache
def _members(kind: type) -> dict[str, _Member]:
    members = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        range_, types = _parts(hint)
        if types & {int, float} and range_ is None:
            raise TypeError(f"{kind.__name__}.{name} is a number without a Range")
        members[name] = _Member(range_, float not in types)
    return members


def _parts(hint: Any) -> tuple[Range | None, set[Any]]:
    """The Range in a hint, and the types that it allows."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        inner, types = _parts(kind)
        return next((note for note in notes if isinstance(note, Range)), inner), types
    if get_origin(hint) in (Union, UnionType):
        parts = [_parts(part) for part in get_args(hint)]
        found = next((range_ for range_, _ in parts if range_ is not None), None)
        return found, set().union(*(types for _, types in parts))
    return None, {hint}
