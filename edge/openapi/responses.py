"""Answers that are not encoded from Structs, as typed members for the OpenAPI document.

Chunks and embeddings are rendered from templates, for speed; tests hold both forms together.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from edge.openai.completions.schema import CompletionChoice
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE, ImageUsage
from edge.openai.text.logprobs import ChatLogprobs
from edge.openai.text.translator import ChatFinishReason
from edge.openai.text.usage import Usage


class FunctionCallDelta(Struct, kw_only=True):
    """A piece of a function call: the name once, then more text of the arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    """A piece of a tool call; id, type and name come with its first piece only."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCallDelta


class Delta(Struct, kw_only=True):
    """What a chunk adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    """A piece of one answer; its last piece has the finish reason."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a chat stream; only the last one has `usage`, where it was asked for."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class CompletionChunk(Struct, kw_only=True):
    """One event of a completion stream; `usage` as in ChatCompletionChunk."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Embedding(Struct, kw_only=True):
    """The vector of one input: numbers, or base64 of little-endian float32."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Struct):
    """Tokens of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    """One vector an input, in their order."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class GeneratedImage(Struct, kw_only=True):
    """A picture as base64 or by address, and the seed that draws it again."""

    b64_json: str | None
    url: str | None
    seed: int


class ImageList(Struct, kw_only=True):
    """All pictures of a request."""

    created: int
    background: str = "opaque"
    data: list[GeneratedImage]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    size: str
    usage: ImageUsage


class ImageEvent(Struct, kw_only=True):
    """What events of pictures have in common; `index` is the picture's number."""

    b64_json: str
    created_at: int
    quality: Literal["low", "medium", "high", "xhigh", "max"]
    background: str = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    index: int


class PartialImageEvent(ImageEvent, kw_only=True):
    """A preview; `partial_image_index` is its number among those of its picture."""

    type: str = PARTIAL_IMAGE
    partial_image_index: int


class CompletedImageEvent(ImageEvent, kw_only=True):
    """A finished picture; the last one has the usage of the request, others zeros."""

    type: str = COMPLETED
    seed: int
    usage: ImageUsage


class Health(Struct):
    """The process is up."""

    status: str = "ok"


class Readiness(Struct):
    """Whether requests would be served, and for each upstream whether a replica serves."""

    status: str
    upstreams: dict[str, bool]
