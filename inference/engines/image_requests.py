"""The parts of an image request that all image engines treat alike: size, seeds, encoding."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from inference.engines.image_size import Size
from isthmus.v1.image_pb2 import GenerateImageRequest, Image, ImageFormat

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Pillow's name and the MIME type of each format.
_FORMATS: Final = {
    ImageFormat.IMAGE_FORMAT_UNSPECIFIED: ("PNG", "image/png"),
    ImageFormat.IMAGE_FORMAT_PNG: ("PNG", "image/png"),
    ImageFormat.IMAGE_FORMAT_JPEG: ("JPEG", "image/jpeg"),
    ImageFormat.IMAGE_FORMAT_WEBP: ("WEBP", "image/webp"),
}
# zlib's level: files a quarter larger than at its default, made five times faster.
_PNG_COMPRESSION: Final = 1
# Seeds are signed 64 bits: this is the first number above them.
_SEED_LIMIT: Final = 2**63


def deliver(image: PillowImage, size: Size, request: GenerateImageRequest) -> Image:
    """Resizes an image to exactly `size` pixels and encodes it in the request's format.

    Takes up to seconds, so it must not run on the event loop.
    """
    from PIL.Image import Resampling

    image = image.convert("RGB")
    if image.size != (size.width, size.height):
        image = image.resize((size.width, size.height), Resampling.LANCZOS)
    kind, mime_type = _FORMATS[request.format]
    file = io.BytesIO()
    if kind == "PNG":
        image.save(file, kind, compress_level=_PNG_COMPRESSION)
    else:
        image.save(file, kind, quality=request.quality if request.HasField("quality") else 100)
    return Image(data=file.getvalue(), mime_type=mime_type, width=size.width, height=size.height)


def image_seed(first: int, index: int) -> int:
    """The seed of image `index` (from 0): the first plus the index, wrapped to signed 64 bits."""
    return (first + index + _SEED_LIMIT) % (2 * _SEED_LIMIT) - _SEED_LIMIT


def requested_size(request: GenerateImageRequest, native: Size) -> Size:
    """The request's size in pixels; the model's own where the request has none."""
    return Size(request.width, request.height) if request.HasField("width") else native
