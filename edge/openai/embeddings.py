"""POST /v1/embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import orjson
import pybase64
from msgspec import UNSET, Meta, UnsetType

from edge.openai import errors
from edge.openai.completion_schema import PromptList
from edge.openai.decode import Schema
from edge.openai.errors import OpenAIError
from edge.openai.inputs import Input, read_inputs
from edge.openai.refusals import Refusals
from edge.openai.schema import ABSENT, AnyJson, PositiveCount, Strict, Text
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse

MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 300_000
EncodingFormat = Literal["float", "base64"]

_FLOAT32_BYTES: Final = 4
# Of the matrix, rendered at once: about half a millisecond of work.
_PIECE_BYTES: Final[dict[EncodingFormat, int]] = {"base64": 256 * 1024, "float": 64 * 1024}


InputList = Annotated[
    PromptList,
    Meta(extra_json_schema={"maxItems": MAX_INPUTS, "not": {"contains": {"const": ""}}}),
]


class EmbeddingsRequest(Strict):
    """The body; null is refused for OpenAI's own members other than `user`."""

    input: Text | InputList
    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    encoding_format: EncodingFormat = "float"
    dimensions: PositiveCount | UnsetType = UNSET
    user: str | None = None

    # vLLM's extras. Advice without effect: x-request-id correlates, and nothing is cached.
    request_id: str | None = None
    cache_salt: str | None = None
    # Refused by name unless they ask for what happens anyway.
    priority: AnyJson = ABSENT
    truncate_prompt_tokens: AnyJson = ABSENT
    truncation_side: AnyJson = ABSENT
    padding: AnyJson = ABSENT
    add_special_tokens: AnyJson = ABSENT
    use_activation: AnyJson = ABSENT
    embed_dtype: AnyJson = ABSENT
    endianness: AnyJson = ABSENT
    mm_processor_kwargs: AnyJson = ABSENT


REFUSALS: Final = Refusals(
    {
        "priority": frozenset({b"0"}),
        # Too long an input is an error, never a silent cut.
        "truncate_prompt_tokens": frozenset[bytes](),
        "truncation_side": frozenset({b'"left"', b'"right"'}),
        "padding": frozenset({b'"do_not_pad"'}),
        "add_special_tokens": frozenset({b"true"}),
        "use_activation": frozenset({b"true"}),
        "embed_dtype": frozenset({b'"float32"'}),
        "endianness": frozenset({b'"little"', b'"native"'}),
        "mm_processor_kwargs": frozenset[bytes](),
    }
)
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
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    REFUSALS.check(request)
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
    message = EmbedRequest(model=model, dimensions=dimensions)
    _add_inputs(message, inputs)
    return EmbeddingsCall(model, message, request.encoding_format)


def embeddings_answer(call: EmbeddingsCall, response: EmbedResponse, model: str) -> Iterator[bytes]:
    """The document, straight from the packed matrix, in pieces that are rendered when asked for.

    Args:
        call: What was asked for.
        response: What the inference service says.
        model: The name to echo.

    Raises:
        OpenAIError: 500, the matrix has not one row an input; at once.
    """
    rows = len(call.request.inputs)
    row_bytes = response.dimensions * _FLOAT32_BYTES
    # Once: each look at it makes a copy.
    matrix = response.vectors
    if not row_bytes or len(matrix) != rows * row_bytes:
        raise errors.internal_error()
    tokens = response.usage.prompt_tokens or sum(response.token_counts)
    end = b'],"model":%b,"usage":%b}' % (
        msgspec.json.encode(model),
        msgspec.json.encode({"prompt_tokens": tokens, "total_tokens": tokens}),
    )
    rows_a_piece = max(_PIECE_BYTES[call.encoding_format] // row_bytes, 1)
    if call.encoding_format == "base64":
        return _pieces(_base64_rows(matrix, row_bytes), b'"', rows_a_piece, end)
    return _pieces(_float_rows(matrix, row_bytes), b"", rows_a_piece, end)


def _add_inputs(message: EmbedRequest, inputs: Iterable[Input]) -> None:
    # In place: messages that are made first would be copied.
    add = message.inputs.add
    for entry in inputs:
        if isinstance(entry, str):
            add().text = entry
        else:
            add().token_ids.ids.extend(entry)


def _invalid_input() -> OpenAIError:
    return errors.invalid_request(
        "'$.input' is invalid. Please check the API reference: "
        "https://platform.openai.com/docs/api-reference.",
        "input",
    )


def _pieces(
    vectors: Iterator[bytes], quote: bytes, rows_a_piece: int, end: bytes
) -> Iterator[bytes]:
    opening = b'%b{"object":"embedding","index":%d,"embedding":' + quote
    closing = quote + b"}"
    parts = [b'{"object":"list","data":[']
    comma = b""
    for row, vector in enumerate(vectors):
        parts += (opening % (comma, row), vector, closing)
        comma = b","
        if not (row + 1) % rows_a_piece:
            yield b"".join(parts)
            parts = []
    yield b"".join((*parts, end))


def _base64_rows(matrix: bytes, row_bytes: int) -> Iterator[bytes]:
    """It is little-endian float32 already, which is what clients decode."""
    view = memoryview(matrix)
    for start in range(0, len(matrix), row_bytes):
        yield pybase64.b64encode(view[start : start + row_bytes])


def _float_rows(matrix: bytes, row_bytes: int) -> Iterator[bytes]:
    # Not at the top: the edge starts without numpy.
    import numpy as np

    for vector in np.frombuffer(matrix, dtype="<f4").reshape(-1, row_bytes // _FLOAT32_BYTES):
        yield orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
