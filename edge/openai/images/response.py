"""POST /v1/images/generations: the response as one document, in pieces (pieces.py)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from edge.openai import errors
from edge.openai.images.request import ParsedImage
from edge.openai.images.schema import ImageTokensDetails, ImageUsage
from edge.openai.pieces import Base64, Output, Piece
from edge.openai.translator import Translator
from isthmus.v1.image_pb2 import GenerateImageResponse, Image
from isthmus.v1.usage_pb2 import Admitted, Usage

NO_USAGE: Final = Usage()


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An Image message, read once because each read of its `data` copies the bytes.

    Attributes:
        data: The image file.
        width, height: In pixels.
        seed: The seed that generates the image again.
        index: Its number within the request, from 0.
    """

    data: bytes
    width: int
    height: int
    seed: int
    index: int

    @classmethod
    def of(cls, image: Image) -> FinishedImage:
        return cls(image.data, image.width, image.height, image.seed, image.index)


class ImageTranslator(Translator[GenerateImageResponse]):
    """Base of the document and the stream: collects the finished images and the usage.

    Args:
        parsed: The request, which has one source.
        created: Seconds since the Unix epoch.
    """

    def __init__(self, parsed: ParsedImage, created: int) -> None:
        self._parsed = parsed
        self._created = created
        self._images: list[FinishedImage | None] = [None] * parsed.image_count
        self._usage = NO_USAGE

    def source(self, _number: int) -> Self:
        return self

    def admit(self, part: GenerateImageResponse | None) -> Admitted | None:
        return part.admitted if part is not None and part.HasField("admitted") else None

    def text(self, text: str) -> bytes:
        """Never called: an image model generates no text."""
        raise NotImplementedError

    @abstractmethod
    def part(self, part: GenerateImageResponse) -> Output: ...

    def _add(self, image: FinishedImage) -> bool:
        """Keeps an image; returns False if it has no data, or its index is unknown or taken."""
        if not image.data or not self._is_missing(image.index):
            return False
        self._images[image.index] = image
        return True

    def _is_missing(self, index: int) -> bool:
        return index < len(self._images) and self._images[index] is None

    def _all(self) -> list[FinishedImage]:
        """All images in order.

        Raises:
            OpenAIError: 500, an image is missing.
        """
        found = [image for image in self._images if image is not None]
        if len(found) != len(self._images):
            raise errors.internal_error()
        return found


class ImageResponse(ImageTranslator):
    """The document of one request, which has neither progress nor previews."""

    def part(self, part: GenerateImageResponse) -> bytes:
        if part.HasField("image"):
            self._add(FinishedImage.of(part.image))
        if part.HasField("usage"):
            self._usage = part.usage
        return b""

    def files(self) -> list[bytes]:
        """The image files; raises the same as `document`."""
        return [image.data for image in self._all()]

    def document(self, urls: Sequence[str] | None = None) -> list[Piece]:
        """The JSON of an ImageList, in pieces.

        Args:
            urls: The URL of each image; None puts the images themselves into the document.

        Raises:
            OpenAIError: 500, an image is missing.
        """
        images = self._all()
        pieces: list[Piece] = [b'{"created":%d,"background":"opaque","data":[' % self._created]
        for image in images:
            if urls is None:
                pieces += [b'{"b64_json":"', Base64(image.data), b'","url":null']
            else:
                pieces += [b'{"b64_json":null,"url":', msgspec.json.encode(urls[image.index])]
            separator = b"" if image is images[-1] else b","
            pieces.append(b',"seed":%d}%b' % (image.seed, separator))
        pieces.append(
            b'],"output_format":"%b","quality":"%b","size":"%dx%d","usage":%b}'
            % (
                self._parsed.output_format.encode(),
                self._parsed.quality.encode(),
                images[0].width,
                images[0].height,
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
