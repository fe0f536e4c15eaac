"""What the edge offers, operation by operation, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from edge.openai.chat.response import ChatCompletion
from edge.openai.chat.schema import ChatRequest
from edge.openai.completions.schema import Completion, CompletionRequest
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE, ImageRequest
from edge.openai.models import ModelList, ModelObject
from edge.openapi.components import RATE_LIMITS
from edge.openapi.responses import (
    ChatCompletionChunk,
    CompletedImageEvent,
    CompletionChunk,
    EmbeddingList,
    Health,
    ImageList,
    PartialImageEvent,
    Readiness,
)

ABOUT: Final = """\
OpenAI's REST API in front of gRPC inference services.

Failures have OpenAI's statuses and error object, before a stream begins too. Members that no API
documents are refused unless the operator lets them be dropped. Null is the same as leaving a
member out where the schema allows null. Numbers are never read from text, and `1.0` is no integer.
"""

TAGS: Final = {
    "Inference": "What models are for.",
    "Models": "Which names are served.",
    "Operations": "What probes and tools ask.",
}

Answer = type[Struct] | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        request: The body.
        examples: Bodies that work with the default models.
        success: What a 200 says.
        answers: Bodies of the 200 by media type; types, or JSON Schemas where none is encoded.
        chunk: The JSON of each event where the request asks for a stream that ends with [DONE].
        events: The JSON of each event by its name, where events have names.
        headers: Of the 200, beside x-request-id.
        other: What other statuses say, and their JSON, where they are no errors.
        failures: Statuses with OpenAI's error object.
        open: Whether it works without an API key.
    """

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str
    success: str
    answers: Mapping[str, Answer]
    failures: tuple[int, ...]
    request: type[Struct] | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    chunk: type[Struct] | None = None
    events: Mapping[str, type[Struct]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    other: Mapping[int, tuple[str, type[Struct] | None]] = field(default_factory=dict)
    open: bool = False


# 405 is the path's: what another method on it gets.
_OPEN: Final = (405, 500)
_READ: Final = (401, 403, 405, 500)
_MODEL: Final = (400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504)
_MODEL_HEADERS: Final = ("openai-processing-ms", "openai-version", *RATE_LIMITS)
_CALL_PARAMETERS: Final = ("x-request-id", "x-request-timeout", "traceparent")
_QUESTION: Final = [{"role": "user", "content": "What is the capital of France?"}]
_CHAT: Final = {
    "model": "gpt-4",
    "messages": _QUESTION,
    "temperature": 0,
    "max_completion_tokens": 20,
}
_SCHEMA: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}

OPERATIONS: Final = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        id="createChatCompletion",
        tag="Inference",
        summary="Chat",
        description="Answers a conversation, as one document or as a stream.",
        request=ChatRequest,
        examples={
            "plain": _CHAT,
            "streamed": {**_CHAT, "stream": True, "stream_options": {"include_usage": True}},
            "structured": {
                **_CHAT,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "capital", "strict": True, "schema": _SCHEMA},
                },
            },
            "tools": {
                **_CHAT,
                "tools": [
                    {"type": "function", "function": {"name": "find", "parameters": _SCHEMA}}
                ],
                "tool_choice": "required",
            },
        },
        success="The answer, or the stream of it.",
        answers={"application/json": ChatCompletion},
        chunk=ChatCompletionChunk,
        headers=_MODEL_HEADERS,
        parameters=_CALL_PARAMETERS,
        failures=_MODEL,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        id="createCompletion",
        tag="Inference",
        summary="Completion",
        description="Continues texts, without a chat template.",
        request=CompletionRequest,
        examples={
            "plain": {
                "model": "text-davinci-003",
                "prompt": "The capital of France is",
                "temperature": 0,
                "max_tokens": 5,
            }
        },
        success="All choices of all prompts, or the stream of them.",
        answers={"application/json": Completion},
        chunk=CompletionChunk,
        headers=_MODEL_HEADERS,
        parameters=_CALL_PARAMETERS,
        failures=_MODEL,
    ),
    Operation(
        method="post",
        path="/v1/embeddings",
        id="createEmbeddings",
        tag="Inference",
        summary="Embeddings",
        description="Turns texts into vectors.",
        request=EmbeddingsRequest,
        examples={
            "plain": {
                "model": "text-embedding-ada-002",
                "input": ["a cat", "a kitten", "an invoice"],
            }
        },
        success="One vector an input.",
        answers={"application/json": EmbeddingList},
        headers=_MODEL_HEADERS,
        parameters=_CALL_PARAMETERS,
        failures=_MODEL,
    ),
    Operation(
        method="post",
        path="/v1/images/generations",
        id="createImage",
        tag="Inference",
        summary="Images",
        description="Draws pictures, as one document or as a stream with previews.",
        request=ImageRequest,
        examples={
            "plain": {"prompt": "a red heart", "size": "256x256", "seed": 1},
            "streamed": {
                "prompt": "a red heart",
                "size": "256x256",
                "stream": True,
                "partial_images": 2,
            },
            "by address": {"prompt": "a red heart", "size": "256x256", "response_format": "url"},
        },
        success="All pictures, or the stream of them.",
        answers={"application/json": ImageList},
        events={PARTIAL_IMAGE: PartialImageEvent, COMPLETED: CompletedImageEvent},
        headers=_MODEL_HEADERS,
        parameters=_CALL_PARAMETERS,
        failures=_MODEL,
    ),
    Operation(
        method="get",
        path="/files/{name}",
        id="getFile",
        tag="Inference",
        summary="A picture",
        description="What an answer to `/v1/images/generations` gave the address of. It is kept "
        "for a limited time, and needs no API key: its name cannot be guessed.",
        parameters=("file",),
        success="The picture.",
        answers={
            "image/png": {"type": "string", "format": "binary"},
            "image/jpeg": {"type": "string", "format": "binary"},
            "image/webp": {"type": "string", "format": "binary"},
        },
        failures=(*_OPEN, 404),
        open=True,
    ),
    Operation(
        method="get",
        path="/v1/models",
        id="listModels",
        tag="Models",
        summary="All names",
        description="Ids and aliases of everything that is served.",
        success="The names.",
        answers={"application/json": ModelList},
        failures=_READ,
    ),
    Operation(
        method="get",
        path="/v1/models/{id}",
        id="retrieveModel",
        tag="Models",
        summary="One name",
        description="An id or alias and what it stands for.",
        parameters=("model-id",),
        success="The name.",
        answers={"application/json": ModelObject},
        failures=(*_READ, 404),
    ),
    Operation(
        method="get",
        path="/health",
        id="health",
        tag="Operations",
        summary="Liveness",
        description="Whether the process answers at all.",
        success="It does.",
        answers={"application/json": Health},
        failures=_OPEN,
        open=True,
    ),
    Operation(
        method="get",
        path="/ready",
        id="ready",
        tag="Operations",
        summary="Readiness",
        description="Whether requests would be served: every upstream has a replica, and the edge "
        "does not drain.",
        success="They would.",
        answers={"application/json": Readiness},
        other={503: ("They would not, or not all.", Readiness)},
        failures=_OPEN,
        open=True,
    ),
    Operation(
        method="get",
        path="/openapi.json",
        id="openapi",
        tag="Operations",
        summary="This document",
        description="As OpenAPI 3.1, of this edge's configuration.",
        success="The document.",
        answers={"application/json": {"type": "object", "required": ["openapi"]}},
        headers=("etag",),
        other={304: ("The caller has this version.", None)},
        failures=_OPEN,
        open=True,
    ),
    Operation(
        method="get",
        path="/docs",
        id="docs",
        tag="Operations",
        summary="This document, as a page",
        description="Shows all of this, and sends requests.",
        success="The page.",
        answers={"text/html": {"type": "string"}},
        failures=_OPEN,
        open=True,
    ),
    Operation(
        method="get",
        path="/docs/{asset}",
        id="docsAsset",
        tag="Operations",
        summary="A file of the page",
        description="Script and style of `/docs`.",
        parameters=("asset",),
        success="The file.",
        answers={
            "text/javascript": {"type": "string"},
            "text/css": {"type": "string"},
        },
        failures=(*_OPEN, 404),
        open=True,
    ),
)
