"""Response bodies of megabytes as lists of pieces.

An image becomes base64 only when it is sent, one slice at a time, so that encoding it does not
block the event loop for long.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

# Bytes of an image that are encoded at once, in a few milliseconds; a multiple of 3, since three
# bytes become four characters.
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
            image replaces it while it has not been sent. None for what must be sent.
    """

    pieces: list[Piece]
    preview_of: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


# The part of a response that one message of the service becomes; b"" for none.
Output = bytes | LargeEvent


def join(outputs: Iterable[Output]) -> Output:
    """Several outputs as one, in order."""
    outputs = list(outputs)
    small = [output for output in outputs if isinstance(output, bytes)]
    if len(small) == len(outputs):
        return b"".join(small)
    if len(outputs) == 1:
        return outputs[0]
    pieces: list[Piece] = []
    for output in outputs:
        pieces += [output] if isinstance(output, bytes) else output.pieces
    return LargeEvent(pieces)


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
