"""Images in messages, which must be data: URLs; other URLs are not fetched."""

from __future__ import annotations

import binascii
import re
from typing import Final

from msgspec import UNSET

from contract.limits import MAX_CHAT_IMAGE_BYTES
from contract.refusals import string_too_long, unsupported_value
from edge.openai import errors
from edge.openai.chat.schema import ImageUrl
from edge.openai.errors import OpenAIError
from isthmus.v1.chat_pb2 import Media

_IMAGE: Final = re.compile(r"data:(image/(?:png|jpeg|jpg|webp|gif));base64,", re.IGNORECASE)


def image_media(image: ImageUrl, param: str) -> Media:
    """Decodes the data: URL. The inference service checks whether the bytes are an image.

    Args:
        image: The data: URL and its `detail`.
        param: Path of the `image_url` parameter, for errors.

    Raises:
        OpenAIError: 400, it is not a base64 data: URL of an image, or is too large.
    """
    param = f"{param}.url"
    if image.url[:5].lower() != "data:":
        explanation = "pictures are taken as data: URLs only; addresses are not fetched."
        raise OpenAIError.of(unsupported_value(param, explanation))
    head = _IMAGE.match(image.url)
    if head is None:
        raise _invalid_image_url(param)
    encoded = image.url[head.end() :]
    if len(encoded) > (MAX_CHAT_IMAGE_BYTES + 2) // 3 * 4:
        raise OpenAIError.of(string_too_long(param, MAX_CHAT_IMAGE_BYTES // 3 * 4))
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as fault:
        raise _invalid_image_url(param) from fault
    if not data:
        raise _invalid_image_url(param)
    detail = None if image.detail is UNSET else image.detail
    return Media(data=data, mime_type=head[1].lower().replace("jpg", "jpeg"), detail=detail)


def _invalid_image_url(param: str) -> OpenAIError:
    return errors.invalid_request(
        f"Invalid '{param}'. Expected a base64-encoded data URL with an image MIME type (e.g. "
        "'data:image/png;base64,iVBORw0KGgo...').",
        param,
        "invalid_value",
    )
