"""Reads tables of a TOML file into structs; errors name the file, the line and the member."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from keys.exposure import ConfigError

StructT = TypeVar("StructT", bound=msgspec.Struct)

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\]#]+?)\s*\]")
_PLACE: Final = re.compile(r"(?P<text>.*?)(?: - at `(?P<place>\$.*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.+)`")


class ConfigFile:
    """A configuration file.

    Attributes:
        path: Where the file is.
        tables: Its values by name.

    Raises:
        ConfigError: The file is not TOML.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8")
            self.tables: dict[str, Any] = tomllib.loads(self._text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error

    def read(
        self, kind: type[StructT], table: Mapping[str, Any], name: str, number: int = 0
    ) -> StructT:
        """Converts a table; the command line may have added values to it.

        Args:
            kind: A struct that forbids unknown fields.
            table: The values.
            name: The table's name in the file.
            number: Which of several tables of that name, from 0.

        Raises:
            ConfigError: A member is unknown, or its value is wrong.
        """
        try:
            return convert(kind, table, name)
        except ConfigError as error:
            member = str(error).partition(":")[0].rpartition(".")[2]
            line = _line(self._text, name, number, member)
            at = f"{self.path}:{line}" if line else str(self.path)
            raise ConfigError(f"{at}: {error}") from error


def convert(kind: type[StructT], table: Mapping[str, Any], name: str) -> StructT:
    """Converts a table that need not be in a file.

    Raises:
        ConfigError: A member is unknown, or its value is wrong.
    """
    try:
        # msgspec converts TOML's own types; the hook is called for Path, the only other one.
        return msgspec.convert(table, kind, dec_hook=lambda type_, value: type_(value))
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        match = _PLACE.fullmatch(str(error))
        text, place = (match["text"], match["place"] or "$") if match else (str(error), "$")
        where = name + place[1:].replace("[...]", "")
        if unknown := _UNKNOWN.fullmatch(text):
            advice = nearest(unknown[1], _members(kind))
            raise ConfigError(f"{where}.{unknown[1]}: there is no such setting{advice}") from None
        raise ConfigError(f"{where}: {text}") from None


def nearest(name: str, known: Sequence[str]) -> str:
    """A clause with the known name most like an unknown one; "" if there is none."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; the nearest is {near[0]!r}" if near else ""


def _members(kind: type[msgspec.Struct]) -> list[str]:
    """Names of the members, and of those of the structs within."""
    names = []
    for field in msgspec.structs.fields(kind):
        names.append(field.name)
        for inner in getattr(field.type, "__args__", ()):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                names += _members(inner)
    return names


def _line(text: str, name: str, number: int, member: str) -> int:
    """The line of a member, or that of its table; 0 if the file has neither."""
    assigned = re.compile(rf"(^|[\s,{{\"']){re.escape(member)}[\"']?\s*=")
    seen, start, inside = -1, 0, False
    for count, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header and header[2] == name:
            seen += 1
            inside = seen == number
            start = count if inside else start
        elif header and not header[2].startswith(f"{name}."):
            inside = False
        if inside and (assigned.search(line) or (header and header[2] == f"{name}.{member}")):
            return count
    return start
