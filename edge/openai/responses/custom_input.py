"""The input of a custom tool, read from the arguments of the function that stands for it.

Models call functions with JSON, so a custom tool is a function with one text:
`{"input": "..."}`. Its calls are given back with the text alone.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

SCHEMA: Final = msgspec.Raw(
    b'{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],'
    b'"additionalProperties":false}'
)
# The tokens of JSON before the text; white space may stand before each.
_HEAD: Final = ("{", '"input"', ":", '"')
_SPACE: Final = " \t\n\r"
# An escape; the first half of a surrogate pair waits for the second.
_ESCAPE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}"
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u]"
)
_CHARACTERS: Final = re.compile(rf'(?:[^"\\]|{_ESCAPE.pattern})*')


class InputReader:
    """Reads the text piece by piece; the arguments may be cut off anywhere.

    Arguments in another form, which a model without a grammar may write, are the text themselves.
    Each character is read once: a model may write thousands of spaces.
    """

    def __init__(self) -> None:
        self._unread = ""
        self._inside = False
        self._ended = False
        # Parts of the head that are still expected, and all pieces while it is not complete; None
        # are expected once something else has come.
        self._expected: tuple[str, ...] = _HEAD
        self._pieces: list[str] = []

    def feed(self, piece: str) -> str:
        """The text that a piece of the arguments adds."""
        if self._ended:
            return ""
        if not self._inside:
            self._pieces.append(piece)
            self._inside = bool(self._expected) and self._read_head(piece)
            if not self._inside:
                return ""
        else:
            self._unread += piece
        match = _CHARACTERS.match(self._unread)
        end = match.end() if match else 0
        read, self._unread = self._unread[:end], self._unread[end:]
        self._ended = self._unread.startswith('"')
        return _ESCAPE.sub(_unescaped, read)

    def _read_head(self, piece: str) -> bool:
        """Reads on in the head; returns whether it is complete."""
        unread = (self._unread + piece).lstrip(_SPACE)
        while self._expected and unread.startswith(self._expected[0]):
            unread = unread.removeprefix(self._expected[0])
            self._expected = self._expected[1:]
            if not self._expected:
                self._unread = unread
                return True
            unread = unread.lstrip(_SPACE)
        if not self._expected[0].startswith(unread):
            self._expected = ()
        self._unread = unread
        return False

    def rest(self) -> str:
        """The text that `feed` has not returned, once the arguments are complete."""
        return "" if self._inside else "".join(self._pieces)


def _unescaped(escape: re.Match[str]) -> str:
    """The character of an escape; what is no escape of JSON stays as it is."""
    try:
        return msgspec.json.decode(f'"{escape[0]}"', type=str)
    except msgspec.DecodeError:
        return escape[0]


def input_of(arguments: str) -> str:
    """The whole text, as a stream of its pieces has it."""
    reader = InputReader()
    return reader.feed(arguments) + reader.rest()
