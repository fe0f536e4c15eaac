"""Pictures in messages: data: URLs only, nothing is ever fetched."""

from __future__ import annotations

import binascii
import re
from typing import Final

from msgspec import UNSET

from edge.openai import errors
from edge.openai.chat.schema import ImageUrl
from edge.openai.errors import OpenAIError
from isthmus.v1.chat_pb2 import Media

MAX_IMAGES: Final = 16
MAX_IMAGE_BYTES: Final = 10 * 1024 * 1024
_IMAGE: Final = re.compile(r"data:(image/(?:png|jpeg|jpg|webp|gif));base64,", re.IGNORECASE)


def image_media(image: ImageUrl, param: str) -> Media:
    """The picture itself; whether it is one is for the model's service to say.

    Args:
        image: A data: URL and how closely to look.
        param: Path of `image_url`.

    Raises:
        OpenAIError: 400, not a data: URL of a picture, damaged or too large.
    """
    param = f"{param}.url"
    if not image.url[:5].lower() == "data:":
        raise errors.unsupported_value(
            param, "pictures are taken as data: URLs only; addresses are not fetched."
        )
    head = _IMAGE.match(image.url)
    if head is None:
        raise _damaged(param)
    encoded = image.url[head.end() :]
    if len(encoded) > (MAX_IMAGE_BYTES + 2) // 3 * 4:
        raise errors.string_too_long(param, MAX_IMAGE_BYTES // 3 * 4)
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as fault:
        raise _damaged(param) from fault
    if not data:
        raise _damaged(param)
    detail = None if image.detail is UNSET else image.detail
    return Media(data=data, mime_type=head[1].lower().replace("jpg", "jpeg"), detail=detail)


def _damaged(param: str) -> OpenAIError:
    return errors.invalid_request(
        f"Invalid '{param}'. Expected a base64-encoded data URL with an image MIME type (e.g. "
        "'data:image/png;base64,iVBORw0KGgo...').",
        param,
        "invalid_value",
    )
