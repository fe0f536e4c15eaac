"""POST /v1/images/generations: the request, from JSON to a GenerateImageRequest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from contract.limits import MAX_STEPS
from contract.refusals import shown, unsupported_value
from edge.openai import errors
from edge.openai.decoding.decoder import Schema
from edge.openai.errors import OpenAIError
from edge.openai.images.schema import SIZE_PATTERN, ImageRequest, Quality
from isthmus.v1.image_pb2 import GenerateImageRequest, ImageFormat
from isthmus.v1.models_pb2 import ImageCapabilities

OutputFormat = Literal["png", "jpeg", "webp"]
# Values of `quality` in responses; a request's other values are synonyms of these.
QualityLevel = Literal["low", "medium", "high", "xhigh", "max"]

_SCHEMA: Final[Schema[ImageRequest]] = Schema(ImageRequest)
_SIZE: Final = re.compile(SIZE_PATTERN)
# Width and height in pixels if `size` is absent.
_DEFAULT_SIDE: Final = 1024
_FORMATS: Final[Mapping[OutputFormat, ImageFormat]] = {
    "png": ImageFormat.IMAGE_FORMAT_PNG,
    "jpeg": ImageFormat.IMAGE_FORMAT_JPEG,
    "webp": ImageFormat.IMAGE_FORMAT_WEBP,
}
_SYNONYMS: Final[Mapping[Quality, QualityLevel]] = {
    "auto": "medium",
    "standard": "medium",
    "hd": "high",
}
# Model names whose clients read `url` unless they ask for another format. Clients of all other
# names, OpenAI's gpt-image-... among them, read `b64_json`.
_URL_NAMES: Final = frozenset({"dall-e-2", "dall-e-3"})
# Denoising steps in percent of the model's default.
_STEPS_PERCENT: Final[Mapping[QualityLevel, int]] = {
    "low": 50,
    "medium": 100,
    "high": 150,
    "xhigh": 200,
    "max": 300,
}


@dataclass(frozen=True, slots=True)
class ParsedImage:
    """A checked images request.

    Attributes:
        request: The request to the inference service, which `set_model` changes. Its model is the
            requested name, "" for none.
        stream: Whether the response is an event stream.
        wants_urls: Whether the response has URLs instead of the images themselves.
        output_format: File format of the images.
        quality: The `quality` of the response.
    """

    request: GenerateImageRequest
    stream: bool
    wants_urls: bool
    output_format: OutputFormat
    quality: QualityLevel

    @property
    def image_count(self) -> int:
        return self.request.n or 1

    def set_model(self, model: str, capabilities: ImageCapabilities) -> None:
        """Sets `request.model` and, unless the client did, `request.steps` from the quality."""
        self.request.model = model
        percent = _STEPS_PERCENT[self.quality]
        if percent != 100 and capabilities.default_steps and not self.request.HasField("steps"):
            steps = capabilities.default_steps * percent // 100
            self.request.steps = min(max(1, steps), MAX_STEPS)


def parse_image_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedImage:
    """Reads and checks a body. `ignore_unknown` drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    request.check_refused()
    _check_combinations(request)
    output_format = _output_format(request)
    quality = request.quality or "auto"
    message = GenerateImageRequest(
        model=request.model or "",
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        n=request.n,
        steps=request.steps or request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        format=_FORMATS[output_format],
        quality=None if output_format == "png" else request.output_compression,
        partial_images=request.partial_images,
    )
    _fill_size(request.size, message)
    return ParsedImage(
        request=message,
        stream=bool(request.stream),
        wants_urls=_wants_urls(request),
        output_format=output_format,
        quality=_SYNONYMS.get(quality) or cast("QualityLevel", quality),
    )


def _wants_urls(request: ImageRequest) -> bool:
    if request.response_format is None:
        return request.model in _URL_NAMES and not request.stream
    return request.response_format == "url"


def _check_combinations(request: ImageRequest) -> None:
    if request.partial_images and not request.stream:
        raise errors.invalid_request(
            "The 'partial_images' parameter is only allowed when 'stream' is enabled.",
            "partial_images",
        )
    if request.response_format == "url" and request.stream:
        raise errors.invalid_request(
            "The 'response_format' parameter can only be 'b64_json' when 'stream' is enabled.",
            "response_format",
        )
    if request.steps and request.num_inference_steps not in (None, request.steps):
        raise errors.invalid_request(
            "The 'steps' and 'num_inference_steps' parameters cannot have different values.",
            "num_inference_steps",
        )


def _output_format(request: ImageRequest) -> OutputFormat:
    output_format = request.output_format or "png"
    if output_format == "gif" or output_format == "svg":
        explanation = f"'{output_format}' is not offered. Use 'png', 'jpeg' or 'webp'."
        raise OpenAIError.of(unsupported_value("output_format", explanation))
    if output_format == "png" and request.output_compression not in (None, 100):
        raise errors.invalid_request(
            "The 'output_compression' parameter is only allowed when 'output_format' is 'jpeg' or "
            "'webp'.",
            "output_compression",
        )
    return output_format


def _fill_size(size: str | None, out: GenerateImageRequest) -> None:
    if size == "auto":
        # In the contract, absent width and height mean the model's native size.
        return
    if size is None:
        out.width = out.height = _DEFAULT_SIDE
        return
    match = _SIZE.fullmatch(size)
    if match is None:
        raise errors.invalid_request(
            f"Invalid 'size': {shown(size)!r} is neither 'auto' nor of the form "
            "WIDTHxHEIGHT, as in '1024x1024'.",
            "size",
            "invalid_size",
        )
    out.width, out.height = int(match[1]), int(match[2])
