"""Tool calls in text whose form a grammar has fixed.

vLLM's parsers look for their marks everywhere in an answer, also in the strings of the arguments,
and some write numbers anew. Where a grammar has written the calls, each is a beginning with the
function's name, the JSON of the arguments and an end. So the arguments are taken from the text as
they are, and what their strings hold is no mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# What stands outside of a string in JSON and matters to its nesting.
_STRUCTURE: Final = re.compile(r'["{}\[\]]')
# The end of a string, or an escape in it.
_IN_STRING: Final = re.compile(r'\\.|"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a grammar writes calls.

    Attributes:
        beginnings: What stands before the arguments, which are an object, with the function's name.
        marks: What begins the part with the calls. Text before one of them is content; without any
            there is no content.
        either: Whether an answer that does not begin with a mark is content as a whole.
    """

    beginnings: Mapping[str, str]
    marks: Sequence[str] = ()
    either: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer: content, or of the arguments of the call with this index.

    `name` is the function's in the first piece of a call. The index is -1 for content.
    """

    content: str = ""
    index: int = -1
    name: str = ""
    arguments: str = ""


class CallReader:
    """Reads one answer of a form."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._longest = max(map(len, form.beginnings))
        self._is_content = bool(form.marks)
        self._is_first = form.either
        self._buffer = ""
        self._calls = 0
        # Within arguments: how deep, and whether in a string.
        self._depth = 0
        self._in_string = False
        self._in_call = False

    def feed(self, text: str) -> Iterator[Piece]:
        """Takes more text and yields what is complete."""
        self._buffer += text
        while self._buffer:
            before = len(self._buffer), self._in_call, self._is_content
            if self._in_call:
                yield from self._arguments()
            elif self._is_content:
                yield from self._content()
            else:
                yield from self._call()
            if before == (len(self._buffer), self._in_call, self._is_content):
                return

    def rest(self) -> Iterator[Piece]:
        """Yields the text that is still withheld, once the output has ended."""
        if self._form.marks and not self._calls and self._buffer:
            yield Piece(content=self._buffer)
        self._buffer = ""

    def _content(self) -> Iterator[Piece]:
        marks = self._form.marks
        if self._form.either:
            may_start = any(m.startswith(self._buffer) and m != self._buffer for m in marks)
            if self._is_first and may_start:
                return
            self._is_first, starts = False, self._is_first and self._buffer.startswith(tuple(marks))
            end = 0 if starts else len(self._buffer)
            self._is_content = not starts
        else:
            found = [at for mark in marks if (at := self._buffer.find(mark)) >= 0]
            end = min(found) if found else len(self._buffer) - _overlap(self._buffer, marks)
            self._is_content = not found
        content, self._buffer = self._buffer[:end], self._buffer[end:]
        if content:
            yield Piece(content=content)

    def _call(self) -> Iterator[Piece]:
        found = [
            (at, -len(beginning), name)
            for beginning, name in self._form.beginnings.items()
            if (at := self._buffer.find(beginning)) >= 0
        ]
        if not found:
            if self._calls:
                self._buffer = self._buffer[-self._longest :]
            return
        at, length, name = min(found)
        self._buffer = self._buffer[at - length :]
        self._in_call, self._depth, self._in_string = True, 0, False
        yield Piece(index=self._calls, name=name)
        self._calls += 1

    def _arguments(self) -> Iterator[Piece]:
        end = self._scan()
        piece, self._buffer = self._buffer[:end], self._buffer[end:]
        if piece:
            yield Piece(index=self._calls - 1, arguments=piece)

    def _scan(self) -> int:
        """Where the arguments end in the buffer, or what of them is there."""
        at = 0
        while found := (_IN_STRING if self._in_string else _STRUCTURE).search(self._buffer, at):
            at = found.end()
            sign = found[0]
            if sign == '"':
                self._in_string = not self._in_string
            elif sign in "{[":
                self._depth += 1
            elif sign in "]}":
                self._depth -= 1
                if self._depth == 0:
                    self._in_call = False
                    return at
        # An escape may be cut in the middle.
        return len(self._buffer) - (self._in_string and self._buffer.endswith("\\", at))


def _overlap(text: str, marks: Sequence[str]) -> int:
    """The length of the longest end of the text that may begin a mark."""
    longest = min(len(text), max(map(len, marks)))
    return next(
        (n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0
    )
