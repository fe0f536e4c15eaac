"""Images in chats are refused by their headers, before anything decodes them."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from threading import Event, Thread, current_thread
from typing import Any

import pytest
from PIL import Image

from inference.engines.received_images import check_images
from inference.errors import InferenceError
from isthmus.v1.chat_pb2 import ROLE_USER, ChatInput


def encoded(kind: str, size: tuple[int, int] = (8, 8), frames: int = 1) -> bytes:
    images = [Image.new("RGB", size, (n * 40, 0, 0)) for n in range(frames)]
    options: dict[str, Any] = {}
    if frames > 1:
        options = {"save_all": True, "append_images": images[1:]}
    file = io.BytesIO()
    images[0].save(file, kind, **options)
    return file.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header declares a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def check(*images: bytes) -> None:
    chat = ChatInput()
    message = chat.messages.add(role=ROLE_USER)
    for data in images:
        message.parts.add().image.data = data
    check_images(chat)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_images_of_all_four_formats_pass(kind: str) -> None:
    check(encoded(kind), encoded(kind, (640, 480)))


def test_a_photograph_with_a_preview_is_not_animated() -> None:
    """Cameras write such files (MPO) as JPEGs; a decoder returns the photograph."""
    check(encoded("MPO", frames=2))


# After its first frame: an extension without content, and an image descriptor that is cut off.
BROKEN_GIFS = [encoded("GIF")[:-1] + rest for rest in (b"\x21", b"\x2c\0\0")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (declared_png(30_000, 30_000), "at most 50000000 pixels"),
        (declared_png(10_000, 5_001), "at most 50000000 pixels"),
        (declared_png(2**31 - 1, 2**31 - 1), "at most 50000000 pixels"),
        (encoded("GIF", frames=2), "animated"),
        (encoded("WEBP", frames=3), "animated"),
        (encoded("PNG", frames=2), "animated"),
        (encoded("JPEG")[:20], "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"GIF89a", "cannot be read"),
        (BROKEN_GIFS[0], "cannot be read"),
        (BROKEN_GIFS[1], "cannot be read"),
        (b"no image", "cannot be read"),
        (encoded("BMP"), "cannot be read"),
        (encoded("TIFF"), "cannot be read"),
    ],
)
def test_other_images_are_refused_by_their_header(data: bytes, reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(InferenceError) as caught:
        check(encoded("PNG"), data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (caught.value.reason, caught.value.param) == (
        "invalid_value",
        "messages[0].content[1].image_url.url",
    )
    assert reason in caught.value.message
    assert peak < 10_000_000


def test_pixels_of_all_images_together_are_bounded() -> None:
    large = declared_png(7_000, 7_000)
    check(large, large)
    with pytest.raises(InferenceError, match="100000000 pixels together"):
        check(large, large, large)


def test_images_of_several_threads_leave_the_filters_of_warnings_as_those_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = ChatInput()
    chat.messages.add(role=ROLE_USER).parts.add().image.data = encoded("PNG")
    with warnings.catch_warnings():
        check_images(chat)
        before = list(warnings.filters)
        opening, inside = Image.open, {"first": Event(), "second": Event()}

        def opened(*arguments: Any, **named: Any) -> Any:
            # The first one enters before the second one, and leaves before it.
            name = current_thread().name
            inside[name].set()
            if name == "first":
                inside["second"].wait(10)
            else:
                first.join(10)
            return opening(*arguments, **named)

        monkeypatch.setattr(Image, "open", opened)
        first = Thread(target=check_images, args=(chat,), name="first")
        second = Thread(target=check_images, args=(chat,), name="second")
        first.start()
        inside["first"].wait(10)
        second.start()
        second.join(10)
        assert list(warnings.filters) == before
