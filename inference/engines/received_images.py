"""Images that callers send: looked at before a decoder allocates memory for their pixels.

A few kilobytes can declare a billion pixels or thousands of frames. The header alone is read here;
a file whose header lies fails in the decoder, which then reads no more than it declares.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

from inference.errors import InferenceError, invalid_value
from isthmus.v1.chat_pb2 import ChatInput

# Pixels of one image, and of all images of a request: 3 bytes each once decoded.
MAX_PIXELS: Final = 50_000_000
MAX_ALL_PIXELS: Final = 100_000_000

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")


def check_images(chat: ChatInput) -> None:
    """Refuses images that are broken, too large or animated.

    Raises:
        InferenceError: invalid_value, with the path of the image.
    """
    total = 0
    for i, message in enumerate(chat.messages):
        for j, part in enumerate(message.parts):
            if part.HasField("image"):
                param = f"messages[{i}].content[{j}].image_url.url"
                total += _pixels(part.image.data, param)
                if total > MAX_ALL_PIXELS:
                    raise invalid_value(
                        f"Invalid '{param}': the images of a request may have at most "
                        f"{MAX_ALL_PIXELS} pixels together.",
                        param,
                    )


def _pixels(data: bytes, param: str) -> int:
    from PIL import Image

    try:
        # For the whole process: catch_warnings would mix up the filters of several threads.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            # Cameras add previews to a JPEG (MPO), which decoders leave out.
            frames = pixels <= MAX_PIXELS and image.format != "MPO"
            animated = frames and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise _too_large(param) from error
    except Exception as error:
        # Pillow's readers raise all sorts for broken files, such as IndexError and struct.error.
        raise invalid_value(f"Invalid '{param}': the image cannot be read.", param) from error
    if pixels > MAX_PIXELS:
        raise _too_large(param)
    if animated:
        raise invalid_value(f"Invalid '{param}': the image must not be animated.", param)
    return pixels


def _too_large(param: str) -> InferenceError:
    return invalid_value(
        f"Invalid '{param}': the image may have at most {MAX_PIXELS} pixels.", param
    )
