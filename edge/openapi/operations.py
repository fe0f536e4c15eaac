"""The operations of the OpenAPI document: one entry for each route of the edge."""

from __future__ import annotations

from typing import Final

from edge.openai.chat.response import ChatCompletion
from edge.openai.chat.schema import ChatRequest
from edge.openai.completions.schema import Completion, CompletionRequest
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE, ImageRequest
from edge.openai.models import ModelList, ModelObject
from edge.openai.tokens.schema import (
    Detokenization,
    DetokenizationRequest,
    Tokenization,
    TokenizationRequest,
)
from edge.openapi.messages import OPERATIONS as MESSAGES
from edge.openapi.operation import CITY, Operation
from edge.openapi.probes import PROBES
from edge.openapi.response_operations import RESPONSE_OPERATIONS
from edge.openapi.responses import (
    ChatCompletionChunk,
    CompletedImageEvent,
    CompletionChunk,
    EmbeddingList,
    ImageList,
    PartialImageEvent,
)

ABOUT: Final = """\
OpenAI's REST API in front of gRPC inference services.

Failures have OpenAI's statuses and error object, also if a stream was requested and has not begun;
those of the Messages API have Anthropic's error object.
Unknown parameters are refused unless the operator has chosen to ignore them. Where the schema
allows null, it is the same as leaving the parameter out. A number in a string is not read as a
number, and `1.0` is not an integer.
"""

TAGS: Final = {
    "Inference": "Requests to models, and the images that they generate.",
    "Tokens": "How models read prompts.",
    "Models": "The names under which models are served.",
    "Operations": "Probes, this document and the page that shows it.",
}

_QUESTION: Final = [{"role": "user", "content": "What is the capital of France?"}]
_CHAT: Final = {
    "model": "gpt-4",
    "messages": _QUESTION,
    "temperature": 0,
    "max_completion_tokens": 20,
}

_BINARY: Final = {"type": "string", "format": "binary"}


OPERATIONS: Final = (
    Operation(
        path="/v1/chat/completions",
        id="createChatCompletion",
        tag="Inference",
        summary="Chat",
        description="Generates the next message of a conversation, as one document or a stream.",
        request=ChatRequest,
        examples={
            "plain": _CHAT,
            "streamed": {**_CHAT, "stream": True, "stream_options": {"include_usage": True}},
            "structured": {
                **_CHAT,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "capital", "strict": True, "schema": CITY},
                },
            },
            "tools": {
                **_CHAT,
                "tools": [{"type": "function", "function": {"name": "find", "parameters": CITY}}],
                "tool_choice": "required",
            },
        },
        success="All choices, or a stream of them.",
        content={"application/json": ChatCompletion},
        chunk=ChatCompletionChunk,
    ),
    *RESPONSE_OPERATIONS,
    Operation(
        path="/v1/completions",
        id="createCompletion",
        tag="Inference",
        summary="Completion",
        description="Continues texts without a chat template, as one document or a stream.",
        request=CompletionRequest,
        examples={
            "plain": {
                "model": "text-davinci-003",
                "prompt": "The capital of France is",
                "temperature": 0,
                "max_tokens": 5,
            }
        },
        success="All choices of all prompts, or a stream of them.",
        content={"application/json": Completion},
        chunk=CompletionChunk,
    ),
    *MESSAGES,
    Operation(
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
        success="One vector for each input.",
        content={"application/json": EmbeddingList},
    ),
    Operation(
        path="/v1/images/generations",
        id="createImage",
        tag="Inference",
        summary="Images",
        description="Generates images, as one document or as a stream with previews.",
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
        success="All images, or a stream of them.",
        content={"application/json": ImageList},
        events={PARTIAL_IMAGE: PartialImageEvent, COMPLETED: CompletedImageEvent},
    ),
    Operation(
        path="/tokenize",
        id="tokenize",
        tag="Tokens",
        summary="The tokens of a prompt",
        description="Renders a text or a chat as the model reads it, and counts its tokens. Their "
        "number is the `prompt_tokens` in the usage of the same request. The model does not run.",
        request=TokenizationRequest,
        examples={
            "text": {"model": "gpt-4", "prompt": "The capital of France is"},
            "chat": {"model": "gpt-4", "messages": _QUESTION, "return_token_strs": True},
        },
        success="The tokens.",
        content={"application/json": Tokenization},
    ),
    Operation(
        path="/detokenize",
        id="detokenize",
        tag="Tokens",
        summary="The text of tokens",
        description="Turns tokens of the model's own vocabulary into text.",
        request=DetokenizationRequest,
        examples={"plain": {"model": "gpt-4", "tokens": [504, 3575, 282, 4649, 314]}},
        success="The text.",
        content={"application/json": Detokenization},
    ),
    Operation(
        path="/files/{name}",
        id="getFile",
        tag="Inference",
        summary="An image file",
        description="An image whose URL was in a response of `/v1/images/generations`. It is kept "
        "for a limited time. It needs no API key, since its name cannot be guessed.",
        parameters=("file",),
        success="The image.",
        content=dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _BINARY),
        open=True,
    ),
    Operation(
        path="/v1/models",
        id="listModels",
        tag="Models",
        summary="All names",
        description="Lists the ids and aliases of all models. With the header `anthropic-version`, "
        "it has Anthropic's form and the names that `/v1/messages` takes.",
        success="The names.",
        content={"application/json": ModelList},
    ),
    Operation(
        path="/v1/models/{id}",
        id="retrieveModel",
        tag="Models",
        summary="One name",
        description="Describes the model behind an id or alias, with the header "
        "`anthropic-version` in Anthropic's form.",
        parameters=("model-id",),
        success="The name.",
        content={"application/json": ModelObject},
    ),
    *PROBES,
)
