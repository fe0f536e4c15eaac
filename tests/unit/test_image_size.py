"""Tests the parts that all image engines share: sizes, seeds, preview steps and files."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from PIL import Image as Pillow

from inference.engines.image_requests import (
    Size,
    deliver,
    image_seed,
    preview_steps,
    render_size,
    requested_size,
)
from isthmus.v1.image_pb2 import GenerateImageRequest, ImageFormat

XL = Size(1024, 1024)
EMOJI = Size(128, 128)


@pytest.mark.parametrize(
    ("wanted", "native", "multiple", "expected"),
    [
        ((1024, 1024), XL, 32, (1024, 1024)),
        ((64, 64), XL, 32, (1024, 1024)),
        ((1024, 1024), EMOJI, 32, (128, 128)),
        ((1536, 1024), XL, 32, (1248, 832)),
        ((1024, 1536), XL, 32, (832, 1248)),
        ((1792, 1024), XL, 64, (1344, 768)),
        ((1024, 1536), EMOJI, 32, (96, 160)),
        ((1500, 1000), Size(768, 512), 64, (768, 512)),
        # The native size is used although its sides are no multiples.
        ((512, 512), Size(100, 100), 64, (100, 100)),
        # No other size is within the pixel budget of this model.
        ((64, 128), Size(64, 64), 64, (64, 64)),
        # A little above the pixel budget, for the exact aspect ratio.
        ((512, 256), EMOJI, 32, (192, 96)),
    ],
)
def test_render_size_has_the_nearest_aspect_within_the_pixel_budget(
    wanted: tuple[int, int], native: Size, multiple: int, expected: tuple[int, int]
) -> None:
    assert render_size(Size(*wanted), native, multiple) == Size(*expected)


@pytest.mark.parametrize("multiple", [16, 32, 64])
@pytest.mark.parametrize("native", [EMOJI, Size(512, 512), XL, Size(1280, 768)])
def test_no_other_allowed_size_has_a_much_nearer_aspect(native: Size, multiple: int) -> None:
    sides = range(multiple, int(1.25 * native.pixels) // multiple + 1, multiple)
    shapes = {
        width / height
        for width in sides
        for height in range(multiple, int(1.25 * native.pixels) // width + 1, multiple)
        if width * height >= 0.75 * native.pixels
    }
    for width in range(64, 2049, 248):
        for height in range(64, 2049, 248):
            size = render_size(Size(width, height), native, multiple)
            assert (size.width % multiple, size.height % multiple) == (0, 0)
            assert 0.75 * native.pixels <= size.pixels <= 1.25 * native.pixels
            wanted = math.log(width / height)
            nearest = min(abs(math.log(shape) - wanted) for shape in shapes)
            # Among nearly equal aspect ratios the number of pixels decides.
            assert abs(math.log(size.width / size.height) - wanted) <= nearest + 0.01


@pytest.mark.parametrize(
    ("total", "previews", "expected"),
    [
        (20, 0, ()),
        (20, 1, (10,)),
        (20, 2, (6, 13)),
        (20, 3, (5, 10, 15)),
        (4, 3, (1, 2, 3)),
        (3, 3, (1, 2)),
        (2, 3, (1,)),
        (1, 3, ()),
    ],
)
def test_preview_steps_are_evenly_spaced_before_the_last_step(
    total: int, previews: int, expected: tuple[int, ...]
) -> None:
    assert preview_steps(total, previews) == expected


def test_size_of_a_request_without_one_is_the_models() -> None:
    assert requested_size(GenerateImageRequest(width=64, height=128), XL) == Size(64, 128)
    assert requested_size(GenerateImageRequest(), XL) == XL


@pytest.mark.parametrize(
    ("first", "index", "seed"),
    [
        (5, 0, 5),
        (5, 2, 7),
        (-1, 1, 0),
        (-3, 1, -2),
        (2**40, 1, 2**40 + 1),
        (2**63 - 1, 0, 2**63 - 1),
        (2**63 - 1, 1, -(2**63)),
        (-(2**63), 0, -(2**63)),
    ],
)
def test_each_image_has_the_next_seed_in_signed_64_bits(first: int, index: int, seed: int) -> None:
    assert image_seed(first, index) == seed


NOISE = Pillow.effect_noise((32, 16), 100)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    NOISE.convert("RGB").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("fields", "mime_type", "data"),
    [
        ({}, "image/png", encoded("PNG", compress_level=1)),
        ({"quality": 10}, "image/png", encoded("PNG", compress_level=1)),
        ({"format": ImageFormat.IMAGE_FORMAT_PNG}, "image/png", encoded("PNG", compress_level=1)),
        ({"format": ImageFormat.IMAGE_FORMAT_JPEG}, "image/jpeg", encoded("JPEG", quality=100)),
        (
            {"format": ImageFormat.IMAGE_FORMAT_JPEG, "quality": 0},
            "image/jpeg",
            encoded("JPEG", quality=0),
        ),
        ({"format": ImageFormat.IMAGE_FORMAT_WEBP}, "image/webp", encoded("WEBP", quality=100)),
        (
            {"format": ImageFormat.IMAGE_FORMAT_WEBP, "quality": 30},
            "image/webp",
            encoded("WEBP", quality=30),
        ),
    ],
    ids=str,
)
def test_image_is_encoded_as_asked_for(fields: Any, mime_type: str, data: bytes) -> None:
    image = deliver(NOISE, Size(32, 16), GenerateImageRequest(**fields))
    assert (image.mime_type, image.width, image.height) == (mime_type, 32, 16)
    assert image.data == data


def test_image_is_resized_to_the_requested_size() -> None:
    image = deliver(NOISE, Size(64, 48), GenerateImageRequest())
    assert (image.width, image.height) == (64, 48)
    assert Pillow.open(io.BytesIO(image.data)).size == (64, 48)
