"""POST /v1/embeddings: the service's matrix as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import orjson
import pybase64

from edge.openai import errors
from edge.openai.embeddings.request import ParsedEmbeddings
from edge.openai.embeddings.schema import EncodingFormat
from isthmus.v1.embed_pb2 import EmbedResponse

_FLOAT32_BYTES: Final = 4


# Of the matrix, rendered at once: about half a millisecond of work.
_PIECE_BYTES: Final[dict[EncodingFormat, int]] = {"base64": 256 * 1024, "float": 64 * 1024}


def embeddings_response(
    call: ParsedEmbeddings, response: EmbedResponse, model: str
) -> Iterator[bytes]:
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
