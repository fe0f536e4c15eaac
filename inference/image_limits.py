"""The limits of image requests that hold for every image model."""

from __future__ import annotations

from typing import Final

from contract import refusals
from contract.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGE_PROMPT_CHARACTERS,
    MAX_IMAGES,
    MAX_PARTIAL_IMAGES,
    MAX_QUALITY,
    MAX_STEPS,
)
from inference.errors import InferenceError, check_string, invalid_value
from inference.limits import check_number
from isthmus.v1.image_pb2 import GenerateImageRequest, ImageFormat

# Smallest and largest side of an image in pixels, and most pixels of an image.
MIN_SIDE: Final = 64
MAX_SIDE: Final = 2048
MAX_PIXELS: Final = 2_400_000

# Field of GenerateImageRequest -> lowest and highest value.
_IMAGE_RANGES: Final = {
    "n": (1, MAX_IMAGES),
    "steps": (1, MAX_STEPS),
    "quality": (0, MAX_QUALITY),
    "partial_images": (0, MAX_PARTIAL_IMAGES),
    "guidance_scale": (0, MAX_GUIDANCE_SCALE),
}


def check_image(request: GenerateImageRequest) -> None:
    """Refuses requests beyond the limits of all image models.

    Raises:
        InferenceError: With OpenAI's code and the name of the parameter.
    """
    if not request.prompt:
        raise InferenceError.of(refusals.empty_string("prompt"))
    for name in ("prompt", "negative_prompt"):
        check_string(len(getattr(request, name)), MAX_IMAGE_PROMPT_CHARACTERS, name)
    for name, (lowest, highest) in _IMAGE_RANGES.items():
        if request.HasField(name):
            check_number(name, getattr(request, name), lowest, highest)
    if request.format not in ImageFormat.values():
        raise invalid_value("Invalid 'format': not a known format.", "format")
    if request.HasField("width") or request.HasField("height"):
        _check_size(request.width, request.height)


def _check_size(width: int, height: int) -> None:
    sides = min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE
    if not sides or width * height > MAX_PIXELS:
        raise InferenceError(
            "invalid_size",
            f"Invalid size {width}x{height}: both sides must be {MIN_SIDE} to {MAX_SIDE} pixels, "
            f"and all pixels together at most {MAX_PIXELS}.",
            param="size",
        )
