"""POST /v1/images/generations: the answer, as one document or as events.

Pictures are megabytes: answers are lists of pieces, and a picture becomes base64 only when it is
sent, a slice at a time, so that no request holds up the others.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edge.openai import errors
from edge.openai.answer_schema import (
    COMPLETED,
    PARTIAL_IMAGE,
    ImageTokensDetails,
    ImageUsage,
)
from edge.openai.images import ImageCall
from edge.openai.sse import TAIL, named_head
from isthmus.v1.image_pb2 import GenerateImageResponse, Image
from isthmus.v1.usage_pb2 import Usage

# Encoded in a few milliseconds; three bytes are four characters.
_SLICE_BYTES: Final = 3 * 128 * 1024
_SENT_BYTES: Final = 512 * 1024
_NO_USAGE: Final = Usage()


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


@dataclass(frozen=True, slots=True)
class _Picture:
    """An Image with its file taken out once: every look at the message's own is a copy of it."""

    data: bytes
    width: int
    height: int
    seed: int
    index: int

    @classmethod
    def of(cls, image: Image) -> _Picture:
        return cls(image.data, image.width, image.height, image.seed, image.index)


class _Pictures:
    """The finished pictures of a request; what nobody asked for is dropped."""

    def __init__(self, count: int) -> None:
        self._found: list[_Picture | None] = [None] * count

    def add(self, picture: _Picture) -> bool:
        """Whether it was still missing."""
        if not picture.data or not self.misses(picture.index):
            return False
        self._found[picture.index] = picture
        return True

    def misses(self, index: int) -> bool:
        """Whether a picture was asked for and is not there yet."""
        return index < len(self._found) and self._found[index] is None

    def all(self) -> list[_Picture]:
        """Every one, in order.

        Raises:
            OpenAIError: 500, one never came.
        """
        found = [picture for picture in self._found if picture is not None]
        if len(found) != len(self._found):
            raise errors.internal_error()
        return found


class ImageAnswer:
    """Gathers what the service says into one document.

    Args:
        call: What was asked for.
        created: Seconds since the Unix epoch.
    """

    def __init__(self, call: ImageCall, created: int) -> None:
        self._call = call
        self._created = created
        self._pictures = _Pictures(call.pictures)
        self._usage = _NO_USAGE

    def part(self, part: GenerateImageResponse) -> None:
        """Takes pictures and usage; `admitted`, progress and previews are not for documents."""
        if part.HasField("image"):
            self._pictures.add(_Picture.of(part.image))
        if part.HasField("usage"):
            self._usage = part.usage

    def files(self) -> list[bytes]:
        """The pictures, encoded as was asked for.

        Raises:
            OpenAIError: 500, one never came.
        """
        return [picture.data for picture in self._pictures.all()]

    def document(self, urls: Sequence[str] | None = None) -> list[Piece]:
        """The document.

        Args:
            urls: Where each picture can be had; None sends the pictures themselves.

        Raises:
            OpenAIError: 500, a picture never came.
        """
        pictures = self._pictures.all()
        pieces: list[Piece] = [b'{"created":%d,"background":"opaque","data":[' % self._created]
        for picture in pictures:
            if urls is None:
                pieces += [b'{"b64_json":"', Base64(picture.data), b'","url":null']
            else:
                pieces += [b'{"b64_json":null,"url":', msgspec.json.encode(urls[picture.index])]
            separator = b"" if picture is pictures[-1] else b","
            pieces.append(b',"seed":%d}%b' % (picture.seed, separator))
        pieces.append(
            b'],"output_format":"%b","quality":"%b","size":"%dx%d","usage":%b}'
            % (
                self._call.output_format.encode(),
                self._call.quality.encode(),
                pictures[0].width,
                pictures[0].height,
                _usage_json(self._usage),
            )
        )
        return pieces


class ImageStream:
    """Turns what the service says into named events, one a preview and one a picture.

    Args:
        call: What was asked for.
        created: Seconds since the Unix epoch.
    """

    def __init__(self, call: ImageCall, created: int) -> None:
        self._pictures = _Pictures(call.pictures)
        self._missing = call.pictures
        self._last: _Picture | None = None
        self._usage = _NO_USAGE
        self._members = b'","created_at":%d,"quality":"%b","background":"opaque",' % (
            created,
            call.quality.encode(),
        ) + b'"output_format":"%b",' % (call.output_format.encode())

    def part(self, part: GenerateImageResponse) -> list[Piece]:
        """Events to send now; nothing for progress."""
        events: list[Piece] = []
        if part.HasField("partial_image"):
            preview = _Picture.of(part.partial_image)
            if preview.data and self._pictures.misses(preview.index):
                tail = b'"partial_image_index":%d}' % part.partial_image.partial_index
                events += self._event(PARTIAL_IMAGE, preview, tail)
        if part.HasField("image") and self._pictures.add(picture := _Picture.of(part.image)):
            self._missing -= 1
            if self._missing:
                events += self._completed(picture, _NO_USAGE)
            else:
                # The last one tells what all of them used, which is said last.
                self._last = picture
        if part.HasField("usage"):
            self._usage = part.usage
        return events

    def end(self) -> list[Piece]:
        """The last event, once the service has ended well; nothing when asked again.

        Raises:
            OpenAIError: 500, a picture never came.
        """
        self._pictures.all()
        last, self._last = self._last, None
        return [] if last is None else self._completed(last, self._usage)

    def _completed(self, picture: _Picture, usage: Usage) -> list[Piece]:
        tail = b'"seed":%d,"usage":%b}' % (picture.seed, _usage_json(usage))
        return self._event(COMPLETED, picture, tail)

    def _event(self, name: str, picture: _Picture, tail: bytes) -> list[Piece]:
        head = b'%b{"type":"%b","b64_json":"' % (named_head(name), name.encode())
        place = b'"size":"%dx%d","index":%d,' % (picture.width, picture.height, picture.index)
        return [head, Base64(picture.data), self._members + place + tail + TAIL]


def _usage_json(usage: Usage) -> bytes:
    return msgspec.json.encode(
        ImageUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            input_tokens_details=ImageTokensDetails(text_tokens=usage.prompt_tokens),
        )
    )
