"""Parameters of POST /v1/images/generations, and types of its response."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from contract.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGE_PROMPT_CHARACTERS,
    MAX_IMAGES,
    MAX_PARTIAL_IMAGES,
    MAX_QUALITY,
    MAX_STEPS,
)
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import Seed

# The service checks which sizes a model can generate.
SIZE_PATTERN: Final = "([1-9][0-9]{0,4})[x*]([1-9][0-9]{0,4})"

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
Prompt = Annotated[str, Meta(min_length=1, max_length=MAX_IMAGE_PROMPT_CHARACTERS)]
Steps = Annotated[int, Meta(ge=1, le=MAX_STEPS)]
# For /openapi.json: the size is checked after decoding, with its own error code.
Size = Annotated[str, Meta(extra_json_schema={"pattern": f"^(auto|{SIZE_PATTERN})$"})]


@refuse(
    background=[b'"auto"', b'"opaque"'],
    # OpenAI's default. Another style can be described in the prompt.
    style=[b'"vivid"'],
    frame_count=[],
    frame_duration_ms=[],
    svg=[],
)
class ImageRequest(Refusing):
    """The body."""

    prompt: Prompt
    model: Annotated[str, Meta(min_length=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_IMAGES)] | None = None
    size: Size | None = None
    quality: Quality | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=MAX_QUALITY)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None

    # Additional parameters, named as in other diffusion servers.
    negative_prompt: Annotated[str, Meta(max_length=MAX_IMAGE_PROMPT_CHARACTERS)] | None = None
    steps: Steps | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=MAX_GUIDANCE_SCALE)] | None = None
    seed: Seed | None = None

    # Accepted without effect.
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    user: str | None = None
    safety_identifier: str | None = None


class ImageTokensDetails(Struct):
    """Tokens of the request by kind."""

    text_tokens: int
    image_tokens: int = 0


class ImageUsage(Struct):
    """Tokens of the prompt; drawing itself uses none."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ImageTokensDetails


PARTIAL_IMAGE: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"
