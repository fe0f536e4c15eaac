"""Functions that all image engines share: size, seeds, encoding.

A model generates good images only near the number of pixels that it was trained for, and only at
sides that are multiples of some number. So it works at such a size of nearly the requested aspect
ratio, and the image is resized to exactly the requested size.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from inference.image_limits import MAX_SIDE, MIN_SIDE
from isthmus.v1.image_pb2 import GenerateImageRequest, Image, ImageFormat

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Bounds of the number of pixels, as shares of the number that the model was trained for. A wide
# range allows more aspect ratios: a small model (128 x 128) has few multiples to combine.
_MIN_PIXEL_SHARE: Final = 0.75
_MAX_PIXEL_SHARE: Final = 1.25
# Decimal places of log(aspect ratio): ratios that differ by less than half a percent are equal.
_SHAPE_DIGITS: Final = 2
# Maximum aspect ratio that is tried: twice that of a request, because the nearest ratio may be
# higher than the requested one.
_MAX_ASPECT: Final = 2 * MAX_SIDE // MIN_SIDE
# Pillow's name and the MIME type of each format.
_FORMATS: Final = {
    ImageFormat.IMAGE_FORMAT_UNSPECIFIED: ("PNG", "image/png"),
    ImageFormat.IMAGE_FORMAT_PNG: ("PNG", "image/png"),
    ImageFormat.IMAGE_FORMAT_JPEG: ("JPEG", "image/jpeg"),
    ImageFormat.IMAGE_FORMAT_WEBP: ("WEBP", "image/webp"),
}
# zlib's level: five times faster than its default, with files a quarter larger.
_PNG_COMPRESSION: Final = 1
# The first number above the seeds, which are signed 64 bits.
_SEED_LIMIT: Final = 2**63


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def requested_size(request: GenerateImageRequest, native: Size) -> Size:
    """The request's size in pixels; the model's native size if the request has none."""
    return Size(request.width, request.height) if request.HasField("width") else native


def render_size(requested: Size, native: Size, multiple: int) -> Size:
    """The size at which the model works: sides are multiples of `multiple`.

    Among the sizes with allowed sides and about as many pixels as the native size, this is the one
    with the nearest aspect ratio; among nearly equal ratios, that with the nearest pixel count.
    """
    aspect = requested.width / requested.height
    if aspect == native.width / native.height:
        return native
    widest = math.isqrt(int(_MAX_PIXEL_SHARE * native.pixels) * _MAX_ASPECT)

    def distance(size: Size) -> tuple[float, float]:
        shape = abs(math.log(size.width / size.height / aspect))
        return round(shape, _SHAPE_DIGITS), abs(math.log(size.pixels / native.pixels))

    return min(
        (
            Size(width, height)
            for width in range(multiple, widest + 1, multiple)
            for height in _heights(width, aspect, native.pixels, multiple)
        ),
        key=distance,
        default=native,
    )


def _heights(width: int, aspect: float, budget: int, multiple: int) -> set[int]:
    """The allowed heights just below and above the exact one, within the pixel bounds."""
    highest = int(_MAX_PIXEL_SHARE * budget / width / multiple)
    lowest = math.ceil(_MIN_PIXEL_SHARE * budget / width / multiple)
    if lowest > highest:
        return set()
    below = int(width / aspect // multiple)
    return {multiple * min(max(lowest, count), highest) for count in (below, below + 1)}


def preview_steps(total_steps: int, previews: int) -> tuple[int, ...]:
    """The steps (from 1) after which previews are sent: evenly spaced, before the last step."""
    steps = {total_steps * (i + 1) // (previews + 1) for i in range(previews)}
    return tuple(sorted(steps - {0, total_steps}))


def deliver(image: PillowImage, size: Size, request: GenerateImageRequest) -> Image:
    """Resizes and encodes an image for a request; takes up to seconds, so not on the event loop."""
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
