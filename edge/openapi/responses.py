"""Types of response bodies for the OpenAPI document; their docstrings are its descriptions.

Chunks, embeddings and images are rendered from templates, for speed, so only the document uses
their types. tests/contract/test_openapi.py checks the rendered bodies against them. /health,
/ready, /load and /version are encoded from theirs.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from edge.openai.completions.schema import CompletionChoice
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE, ImageUsage
from edge.openai.text.logprobs import ChatLogprobs
from edge.openai.text.translator import (
    ChatFinishReason,
    CompletionTokensDetails,
    PromptTokensDetails,
)


class FunctionCallDelta(Struct, kw_only=True):
    """A piece of a function call: first its name, then more text of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    """A piece of a tool call; only the first piece has id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCallDelta


class Delta(Struct, kw_only=True):
    """The part of a message that a chunk adds."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    """A piece of one choice; its last piece has the finish reason."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | UnsetType = UNSET


class ChunkUsage(Struct, kw_only=True):
    """The usage; with `continuous_usage_stats`, the usage so far, which has no details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a chat stream. With `include_usage`, the last one has the usage, others null."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    choices: list[ChunkChoice]
    prompt_token_ids: list[int] | UnsetType = UNSET
    usage: ChunkUsage | UnsetType | None = UNSET


class CompletionChunk(Struct, kw_only=True):
    """One event of a completion stream; `usage` as in ChatCompletionChunk."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: ChunkUsage | UnsetType | None = UNSET


class Embedding(Struct, kw_only=True):
    """The vector of one input: numbers, or base64 of little-endian float32 values."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Struct):
    """Tokens of all inputs together; both counts are the same."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    """One vector for each input, in the order of the inputs."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class GeneratedImage(Struct, kw_only=True):
    """An image, as base64 or as a URL, and the seed that generates it again."""

    b64_json: str | None
    url: str | None
    seed: int


class ImageList(Struct, kw_only=True):
    """All images of a request."""

    created: int
    background: str = "opaque"
    data: list[GeneratedImage]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    size: str
    usage: ImageUsage


class ImageEvent(Struct, kw_only=True):
    """The properties that events of images share; `index` is the image's number, from 0."""

    b64_json: str
    created_at: int
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    background: str = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    index: int


class PartialImageEvent(ImageEvent, kw_only=True):
    """A preview of an image; `partial_image_index` is its number, from 0."""

    type: str = PARTIAL_IMAGE
    partial_image_index: int


class CompletedImageEvent(ImageEvent, kw_only=True):
    """A finished image. The last one has the usage of the request, the others have zeros."""

    type: str = COMPLETED
    seed: int
    usage: ImageUsage


class Health(Struct):
    """The process runs."""

    status: str = "ok"


class Version(Struct):
    """The version of Isthmus."""

    version: str


class Load(Struct):
    """The requests that one edge process answers at the moment."""

    server_load: int


class Readiness(Struct):
    """Whether requests can be served, and for each upstream whether it has a serving replica.

    `problems` has, for an upstream, what is wrong with its replicas.
    """

    status: str
    upstreams: dict[str, bool]
    problems: dict[str, str]
