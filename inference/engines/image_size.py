"""The size at which a model works for an image that was requested at another size.

A model makes good images only near the number of pixels that it was trained for, and only at sides
that are multiples of some number. So it works at such a size of nearly the requested shape, and the
result is resized to exactly the requested size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from inference.limits import MAX_SIDE, MIN_SIDE

# Bounds of the pixels to work at, as shares of the pixels that the model was trained for. A wide
# range allows more shapes, which a small model (128 x 128) needs: it has few multiples to combine.
_MIN_PIXEL_SHARE: Final = 0.75
_MAX_PIXEL_SHARE: Final = 1.25
# Decimal places of log(aspect ratio): shapes that differ by less than half a percent are equal.
_SHAPE_DIGITS: Final = 2
# Longest ratio of the sides that is tried; twice the longest that a request may have, because the
# nearest shape may be a longer one.
_MAX_ASPECT: Final = 2 * MAX_SIDE // MIN_SIDE


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def render_size(requested: Size, native: Size, multiple: int) -> Size:
    """The size at which the model works.

    Among the sizes with allowed sides and about as many pixels as the model was trained for, this
    is the one with the nearest shape; among nearly equal shapes, the one with the nearest number
    of pixels.

    Args:
        requested: The size to which the image will be resized.
        native: The size that the model was trained for.
        multiple: Both sides must be multiples of this, in pixels.
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
    """The allowed heights just below and above the exact one, within the bounds of the pixels."""
    highest = int(_MAX_PIXEL_SHARE * budget / width / multiple)
    lowest = max(1, math.ceil(_MIN_PIXEL_SHARE * budget / width / multiple))
    if lowest > highest:
        return set()
    below = int(width / aspect // multiple)
    return {multiple * min(max(lowest, count), highest) for count in (below, below + 1)}


def preview_steps(total_steps: int, previews: int) -> tuple[int, ...]:
    """The steps (from 1) after which previews are sent: evenly spaced, before the last step.

    There are fewer than `previews` where there are not enough steps.
    """
    steps = {total_steps * (i + 1) // (previews + 1) for i in range(previews)}
    return tuple(sorted(steps - {0, total_steps}))
