"""Compares an image with the gradient that the scripted engine makes of a seed."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable
from typing import Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bench.soak.plan import IMAGE_SIDE, IMAGE_STEPS
from bench.soak.words import Problem

# Bits of a seed that are a colour.
_COLOUR_BITS: Final = 0xFFFFFF


def preview_brightness(number: int, previews: int) -> float:
    """Returns the brightness of a preview: the share of the steps that were done before it."""
    steps = {IMAGE_STEPS * (index + 1) // (previews + 1) for index in range(previews)}
    return sorted(steps - {0, IMAGE_STEPS})[number] / IMAGE_STEPS


def check_picture(
    seed: int, reported: int | None, data: str, brightness: float
) -> Iterable[Problem]:
    """Checks that an image has the requested seed, and the pixels that the engine draws for it.

    Args:
        seed: The seed that was requested.
        reported: The seed in the answer; None if it has none.
        data: The PNG in base64.
        brightness: Share of the steps that were done, 0 to 1; 1 for a finished image.
    """
    if reported is not None and reported != seed:
        yield "misdelivered", f"the image of seed {reported}, not {seed}"
        return
    with PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        found = np.asarray(image.convert("RGB"))
    expected = _gradient(seed & _COLOUR_BITS, brightness)
    if found.shape != expected.shape or not np.array_equal(found, expected):
        yield "corrupted", f"the pixels of seed {seed}"


@functools.lru_cache(maxsize=64)
def _gradient(colours: int, brightness: float) -> NDArray[np.uint8]:
    side = (IMAGE_SIDE, IMAGE_SIDE)
    shade = np.asarray(PIL.Image.linear_gradient("L").resize(side)).astype(np.float64)
    shares = [brightness * (colours >> shift & 255) / 255 for shift in (0, 8, 16)]
    return np.stack([(shade * share).astype(np.uint8) for share in shares], axis=-1)
