"""Response bodies of megabytes as lists of pieces.

An image becomes base64 only when it is sent, one slice at a time, so that encoding it does not
block the event loop for long."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

# Encoded in a few milliseconds; three bytes are four characters.
_SLICE_BYTES: Final = 3 * 128 * 1024


_SENT_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Base64:
    """Bytes that are sent as base64."""

    data: bytes

    def __len__(self) -> int:
        return (len(self.data) + 2) // 3 * 4


Piece = bytes | Base64


def encoded(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """What is to be sent, about half a megabyte at a time."""
    ready = bytearray()
    for piece in pieces:
        for part in [piece] if isinstance(piece, bytes) else _slices(piece.data):
            ready += part
            if len(ready) >= _SENT_BYTES:
                yield bytes(ready)
                ready.clear()
    if ready:
        yield bytes(ready)


def _slices(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), _SLICE_BYTES):
        yield binascii.b2a_base64(view[start : start + _SLICE_BYTES], newline=False)
