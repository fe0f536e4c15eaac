"""POST /v1/images/generations: the answer, as one document or as events.

Pictures are megabytes: answers are lists of pieces, and a picture becomes base64 only when it is
sent, a slice at a time, so that no request holds up the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edge.openai import errors
from edge.openai.images.request import ParsedImage
from edge.openai.images.schema import ImageTokensDetails, ImageUsage
from edge.openai.pieces import Base64, Piece
from edge.openai.translator import Translator
from isthmus.v1.image_pb2 import GenerateImageResponse, Image
from isthmus.v1.usage_pb2 import Admitted, Usage

NO_USAGE: Final = Usage()


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An Image with its file taken out once: every look at the message's own is a copy of it."""

    data: bytes
    width: int
    height: int
    seed: int
    index: int

    @classmethod
    def of(cls, image: Image) -> FinishedImage:
        return cls(image.data, image.width, image.height, image.seed, image.index)


class FinishedImages:
    """The finished pictures of a request; what nobody asked for is dropped."""

    def __init__(self, count: int) -> None:
        self._found: list[FinishedImage | None] = [None] * count

    def add(self, picture: FinishedImage) -> bool:
        """Whether it was still missing."""
        if not picture.data or not self.misses(picture.index):
            return False
        self._found[picture.index] = picture
        return True

    def misses(self, index: int) -> bool:
        """Whether a picture was asked for and is not there yet."""
        return index < len(self._found) and self._found[index] is None

    def all(self) -> list[FinishedImage]:
        """Every one, in order.

        Raises:
            OpenAIError: 500, one never came.
        """
        found = [picture for picture in self._found if picture is not None]
        if len(found) != len(self._found):
            raise errors.internal_error()
        return found


class ImageResponse(Translator[GenerateImageResponse]):
    """Gathers what the service says into one document.

    Args:
        call: What was asked for.
        created: Seconds since the Unix epoch.
    """

    def __init__(self, call: ParsedImage, created: int) -> None:
        self._call = call
        self._created = created
        self._pictures = FinishedImages(call.pictures)
        self._usage = NO_USAGE

    def source(self, _number: int) -> ImageResponse:
        """An images request has one source: this."""
        return self

    def admit(self, part: GenerateImageResponse | None) -> Admitted | None:
        """Takes the admission."""
        return part.admitted if part is not None and part.HasField("admitted") else None

    def text(self, text: str) -> bytes:
        """Never called: an image model makes no text."""
        raise NotImplementedError

    def part(self, part: GenerateImageResponse) -> bytes:
        """Takes pictures and usage; `admitted`, progress and previews are not for documents."""
        if part.HasField("image"):
            self._pictures.add(FinishedImage.of(part.image))
        if part.HasField("usage"):
            self._usage = part.usage
        return b""

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
                usage_json(self._usage),
            )
        )
        return pieces


def usage_json(usage: Usage) -> bytes:
    return msgspec.json.encode(
        ImageUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            input_tokens_details=ImageTokensDetails(text_tokens=usage.prompt_tokens),
        )
    )
