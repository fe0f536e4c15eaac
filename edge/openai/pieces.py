"""Large response bodies as lists of pieces.

An image becomes base64 when it is sent, one slice at a time, so that it does not block the event
loop.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

# Bytes of an image that are encoded at once, in a few milliseconds; a multiple of 3, because
# base64 encodes three bytes as four characters.
_SLICE_BYTES: Final = 3 * 128 * 1024
# Bytes that are handed to the transport at once.
_SENT_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Base64:
    """Bytes that are sent as base64; its length is that of the base64 text."""

    data: bytes

    def __len__(self) -> int:
        return (len(self.data) + 2) // 3 * 4


Piece = bytes | Base64


@dataclass(frozen=True, slots=True)
class LargeEvent:
    """Server-sent events that hold images.

    Attributes:
        pieces: The events in order.
        preview_of: Index of the image that this is a preview of. A newer preview of the same
            image replaces it while it has not been sent. None if the events must be sent.
    """

    pieces: list[Piece]
    preview_of: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def __add__(self, later: Output) -> LargeEvent:
        pieces = [later] if isinstance(later, bytes) else later.pieces
        return LargeEvent([*self.pieces, *pieces]) if later else self

    def __radd__(self, earlier: bytes) -> LargeEvent:
        return LargeEvent([earlier, *self.pieces]) if earlier else self


# A part of a response, made from one message of the service; b"" for none. `+` joins two.
Output = bytes | LargeEvent


def encoded(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The bytes to send, about half a megabyte at a time."""
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
