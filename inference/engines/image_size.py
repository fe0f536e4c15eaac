"""At which size a model draws a picture that was asked for at another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from inference.limits import MAX_SIDE, MIN_SIDE

# For the sake of the shape, this share of the pixels that the model was trained for is enough,
# and this much more is not too much: a model of 128 x 128 has few shapes within its budget.
_LEAST_BUDGET: Final = 0.75
_MOST_BUDGET: Final = 1.25
# Shapes that differ by less than half a percent are equal.
_SHAPE_DIGITS: Final = 2
# Longer side to shorter one; twice what callers may ask for, as the next shape may lie beyond.
_LONGEST_SHAPE: Final = 2 * MAX_SIDE // MIN_SIDE


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def render_size(wanted: Size, native: Size, multiple: int) -> Size:
    """The size to draw at.

    Its sides are multiples that the model can do, and it has about as many pixels as the model was
    trained for; of all such sizes the nearest shape, and of nearly equal shapes the nearest number
    of pixels.

    Args:
        wanted: What the picture will be resized to.
        native: What the model was trained for; its pixels are the budget.
        multiple: Of which both sides must be multiples.
    """
    aspect = wanted.width / wanted.height
    if aspect == native.width / native.height:
        return native
    widest = math.isqrt(int(_MOST_BUDGET * native.pixels) * _LONGEST_SHAPE)

    def badness(size: Size) -> tuple[float, float]:
        shape = abs(math.log(size.width / size.height / aspect))
        return round(shape, _SHAPE_DIGITS), abs(math.log(size.pixels / native.pixels))

    return min(
        (
            Size(width, height)
            for width in range(multiple, widest + 1, multiple)
            for height in _heights(width, aspect, native.pixels, multiple)
        ),
        key=badness,
        default=native,
    )


def _heights(width: int, aspect: float, budget: int, multiple: int) -> set[int]:
    """The multiples just below and above the right height, as far as the budgets let them."""
    highest = int(_MOST_BUDGET * budget / width / multiple)
    lowest = max(1, math.ceil(_LEAST_BUDGET * budget / width / multiple))
    if lowest > highest:
        return set()
    right = int(width / aspect // multiple)
    return {multiple * min(max(lowest, rows), highest) for rows in (right, right + 1)}


def preview_steps(total_steps: int, previews: int) -> tuple[int, ...]:
    """After which steps (from 1) previews are sent: evenly spaced, before the last step.

    Fewer than asked for where there are not enough steps.
    """
    steps = {total_steps * (i + 1) // (previews + 1) for i in range(previews)}
    return tuple(sorted(steps - {0, total_steps}))
