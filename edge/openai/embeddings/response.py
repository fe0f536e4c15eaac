"""POST /v1/embeddings: the service's matrix of vectors as one JSON document.

The service sends all vectors as one matrix of packed little-endian float32, a row for each input:
rows x dimensions x 4 bytes, up to tens of megabytes. The document is written straight from these
bytes; no Python float is made.

  encoding_format  a vector is                         made by
  ---------------  ----------------------------------  -------------------------------------------
  base64           base64 of its row, unchanged        pybase64, from a memoryview of the matrix
  float            numbers, each the shortest decimal  orjson, from a numpy array over the matrix
                   of its float32

Rendering megabytes takes tens of milliseconds, in which no other request would run. So the
document is an iterator of pieces of about half a millisecond each, and its consumer (the handler)
lets other requests run between two pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import orjson
import pybase64

from edge.openai import errors
from edge.openai.embeddings.request import ParsedEmbeddings
from edge.openai.embeddings.schema import EncodingFormat
from edge.openai.translator import Translator
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.usage_pb2 import Admitted

_FLOAT32_BYTES: Final = 4
# Bytes of the matrix that become one piece: about half a millisecond of rendering.
_PIECE_BYTES: Final[dict[EncodingFormat, int]] = {"base64": 256 * 1024, "float": 64 * 1024}


class EmbeddingsResponse(Translator[EmbedResponse]):
    """The document of one request, which has one source and one message.

    Args:
        parsed: The request.
        model: Model name that the response echoes.
    """

    def __init__(self, parsed: ParsedEmbeddings, model: str) -> None:
        self._parsed = parsed
        self._model = model
        self._dimensions = self._tokens = 0
        self._matrix = b""

    def source(self, _number: int) -> EmbeddingsResponse:
        return self

    def admit(self, part: EmbedResponse | None) -> Admitted | None:
        """An admission with the response's rate limits; Embed sends no separate admission."""
        return None if part is None else Admitted(rate_limits=part.rate_limits)

    def text(self, text: str) -> bytes:
        """Never called: an embedding model generates no text."""
        raise NotImplementedError

    def part(self, part: EmbedResponse) -> bytes:
        self._dimensions = part.dimensions
        self._tokens = part.usage.prompt_tokens or sum(part.token_counts)
        # The only copy that is kept: the message has another one.
        self._matrix = part.vectors
        return b""

    def document(self) -> Iterator[bytes]:
        """The JSON document in pieces, each rendered when the iterator is advanced.

        Raises:
            OpenAIError: 500, the matrix does not have one row for each input. Raised by the call,
                not by the iterator.
        """
        matrix, encoding = self._matrix, self._parsed.encoding_format
        rows = len(self._parsed.request.inputs)
        row_bytes = self._dimensions * _FLOAT32_BYTES
        if not row_bytes or len(matrix) != rows * row_bytes:
            raise errors.internal_error()
        end = b'],"model":%b,"usage":%b}' % (
            msgspec.json.encode(self._model),
            msgspec.json.encode({"prompt_tokens": self._tokens, "total_tokens": self._tokens}),
        )
        rows_per_piece = max(_PIECE_BYTES[encoding] // row_bytes, 1)
        if encoding == "base64":
            return _pieces(_base64_rows(matrix, row_bytes), b'"', rows_per_piece, end)
        return _pieces(_float_rows(matrix, row_bytes), b"", rows_per_piece, end)

    @property
    def numbers(self) -> int:
        """Numbers in all vectors together: inputs x dimensions."""
        return len(self._parsed.request.inputs) * self._dimensions


def _pieces(
    vectors: Iterator[bytes], quote: bytes, rows_per_piece: int, end: bytes
) -> Iterator[bytes]:
    opening = b'%b{"object":"embedding","index":%d,"embedding":' + quote
    closing = quote + b"}"
    parts = [b'{"object":"list","data":[']
    comma = b""
    for row, vector in enumerate(vectors):
        parts += (opening % (comma, row), vector, closing)
        comma = b","
        if not (row + 1) % rows_per_piece:
            yield b"".join(parts)
            parts = []
    yield b"".join((*parts, end))


def _base64_rows(matrix: bytes, row_bytes: int) -> Iterator[bytes]:
    view = memoryview(matrix)
    for start in range(0, len(matrix), row_bytes):
        yield pybase64.b64encode(view[start : start + row_bytes])


def _float_rows(matrix: bytes, row_bytes: int) -> Iterator[bytes]:
    # Imported here because the edge starts faster without numpy.
    import numpy as np

    for vector in np.frombuffer(matrix, dtype="<f4").reshape(-1, row_bytes // _FLOAT32_BYTES):
        yield orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
