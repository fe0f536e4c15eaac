"""POST /v1/embeddings."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from edge.openai import errors
from edge.openai.completion_schema import PromptList
from edge.openai.decode import Schema
from edge.openai.errors import OpenAIError
from edge.openai.inputs import Input, read_inputs
from edge.openai.schema import PositiveCount, Strict
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import TokenIds

MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 300_000
EncodingFormat = Literal["float", "base64"]

_FLOAT32_BYTES: Final = 4


class EmbeddingsRequest(Strict):
    """The body; null is allowed for `user` alone."""

    input: str | PromptList
    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    encoding_format: EncodingFormat = "float"
    dimensions: PositiveCount | UnsetType = UNSET
    user: str | None = None


_SCHEMA: Final[Schema[EmbeddingsRequest]] = Schema(EmbeddingsRequest)


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """A checked embeddings request.

    Attributes:
        model: The name asked for; "" where the request names none.
        request: For the inference service; its model is the same name.
        encoding_format: How the vectors are written.
    """

    model: str
    request: EmbedRequest
    encoding_format: EncodingFormat


def parse_embeddings_request(body: bytes, *, ignore_unknown: bool = False) -> EmbeddingsCall:
    """Reads a request.

    Args:
        body: The HTTP body.
        ignore_unknown: Drops members that nobody knows instead of refusing them.

    Raises:
        OpenAIError: 400.
    """
    try:
        request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    except OpenAIError as fault:
        if fault.code == "empty_array":
            raise _invalid_input() from fault
        raise
    model = "" if request.model is UNSET else request.model
    inputs = read_inputs(request.input)
    if not isinstance(request.input, str) and len(request.input) > MAX_INPUTS:
        # Holds for the tokens of one flat input, too.
        raise errors.array_too_long("input", MAX_INPUTS, len(request.input))
    if inputs is None or not all(inputs):
        raise _invalid_input()
    if sum(len(entry) for entry in inputs if isinstance(entry, list)) > MAX_TOKENS:
        raise errors.invalid_request(
            f"Invalid 'input': all inputs together may have at most {MAX_TOKENS} tokens.", "input"
        )
    dimensions = None if request.dimensions is UNSET else request.dimensions
    message = EmbedRequest(model=model, inputs=map(_embed_input, inputs), dimensions=dimensions)
    return EmbeddingsCall(model, message, request.encoding_format)


def embeddings_answer(call: EmbeddingsCall, response: EmbedResponse, model: str) -> bytes:
    """The document, straight from the packed matrix.

    Args:
        call: What was asked for.
        response: What the inference service says.
        model: The name to echo.

    Raises:
        OpenAIError: 500, the matrix has not one row an input.
    """
    rows = len(call.request.inputs)
    size = rows * response.dimensions * _FLOAT32_BYTES
    if not size or len(response.vectors) != size:
        raise errors.internal_error()
    encode = _base64_rows if call.encoding_format == "base64" else _float_rows
    vectors = encode(response.vectors, rows)
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
        for index, vector in enumerate(vectors)
    )
    tokens = response.usage.prompt_tokens or sum(response.token_counts)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        data,
        msgspec.json.encode(model),
        msgspec.json.encode({"prompt_tokens": tokens, "total_tokens": tokens}),
    )


def _embed_input(entry: Input) -> EmbedInput:
    if isinstance(entry, str):
        return EmbedInput(text=entry)
    return EmbedInput(token_ids=TokenIds(ids=entry))


def _invalid_input() -> OpenAIError:
    return errors.invalid_request(
        "'$.input' is invalid. Please check the API reference: "
        "https://platform.openai.com/docs/api-reference.",
        None,
    )


def _base64_rows(matrix: bytes, rows: int) -> list[bytes]:
    """The matrix is little-endian float32 already, which is what clients decode."""
    size = len(matrix) // rows
    view = memoryview(matrix)
    return [
        b'"%b"' % binascii.b2a_base64(view[start : start + size], newline=False)
        for start in range(0, len(matrix), size)
    ]


def _float_rows(matrix: bytes, rows: int) -> list[bytes]:
    # Not at the top: the edge starts without numpy.
    import numpy as np

    vectors = np.frombuffer(matrix, dtype="<f4").reshape(rows, -1)
    return [orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY) for vector in vectors]
