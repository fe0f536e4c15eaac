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
_HEAD: Final = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# An escape; the first half of a surrogate pair waits for the second.
_ESCAPE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}"
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u]"
)
_CHARACTERS: Final = re.compile(rf'(?:[^"\\]|{_ESCAPE.pattern})*')


class InputReader:
    """Reads the text piece by piece; the arguments may be cut off anywhere.

    Arguments in another form, which a model without a grammar may write, are the text themselves.
    """

    def __init__(self) -> None:
        self._unread = ""
        self._inside = False
        self._ended = False

    def feed(self, piece: str) -> str:
        """The text that a piece of the arguments adds."""
        if self._ended:
            return ""
        self._unread += piece
        if not self._inside:
            head = _HEAD.match(self._unread)
            if head is None:
                return ""
            self._inside, self._unread = True, self._unread[head.end() :]
        match = _CHARACTERS.match(self._unread)
        end = match.end() if match else 0
        read, self._unread = self._unread[:end], self._unread[end:]
        self._ended = self._unread.startswith('"')
        return _ESCAPE.sub(_unescaped, read)

    def rest(self) -> str:
        """What is left at the end of the arguments."""
        return "" if self._inside else self._unread


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
