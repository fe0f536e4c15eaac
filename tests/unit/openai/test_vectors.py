"""Embedding responses hold the service's vectors in both encodings; models are found by name."""

from __future__ import annotations

import base64
import json

import numpy as np
import orjson
import pytest

from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.errors import OpenAIError
from edge.openai.models import model_object
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.models_pb2 import Model, ModelAlias
from tests.unit.openai.golden_files import embeddings_pieces

ROWS, DIMENSIONS = 7, 384


def answer(encoding_format: str, response: EmbedResponse) -> dict[str, object]:
    asked = {"model": "m", "input": ["x"] * ROWS, "encoding_format": encoding_format}
    call = parse_embeddings_request(json.dumps(asked).encode())
    document: dict[str, object] = json.loads(b"".join(embeddings_pieces(call, response, "m")))
    return document


def embeddings(document: dict[str, object]) -> list[object]:
    data = document["data"]
    assert isinstance(data, list)
    assert [entry["index"] for entry in data] == list(range(ROWS))
    return [entry["embedding"] for entry in data]


def test_both_encodings_hold_the_same_float32_values() -> None:
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS)).astype("<f4")
    response = EmbedResponse(dimensions=DIMENSIONS, vectors=vectors.tobytes(), token_counts=[2] * 7)
    numbers = np.array(embeddings(answer("float", response)), dtype="<f4")
    packed = [base64.b64decode(str(text)) for text in embeddings(answer("base64", response))]
    assert np.array_equal(numbers, vectors)
    assert b"".join(packed) == vectors.tobytes()
    assert answer("float", response)["usage"] == {"prompt_tokens": 14, "total_tokens": 14}


@pytest.mark.parametrize("size", [0, 4, ROWS * DIMENSIONS * 4 - 4, ROWS * DIMENSIONS * 4 + 4])
def test_matrix_of_the_wrong_size_is_a_server_error(size: int) -> None:
    with pytest.raises(OpenAIError) as raised:
        answer("base64", EmbedResponse(dimensions=DIMENSIONS, vectors=b"\0" * size))
    assert raised.value.status == 500


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 65, 300])
def test_joined_pieces_equal_the_document_in_one_piece(encoding_format: str, rows: int) -> None:
    vectors = np.random.default_rng(rows).standard_normal((rows, 1024)).astype("<f4")
    vectors[0, :6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38]
    asked = {"model": "m", "input": ["x"] * rows, "encoding_format": encoding_format}
    call = parse_embeddings_request(json.dumps(asked).encode())
    response = EmbedResponse(dimensions=1024, vectors=vectors.tobytes(), token_counts=[1] * rows)
    pieces = list(embeddings_pieces(call, response, "m"))
    plain = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector
                if encoding_format == "float"
                else base64.b64encode(vector.tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": "m",
        "usage": {"prompt_tokens": rows, "total_tokens": rows},
    }
    assert b"".join(pieces) == orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
    # A piece is small enough not to block the event loop and large enough to be worth a write.
    assert max(map(len, pieces)) < 512 * 1024
    assert len(pieces) <= 1 + rows // 16


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_vector_larger_than_a_piece_is_sent_whole(encoding_format: str) -> None:
    asked = {"model": "m", "input": ["x"] * 2, "encoding_format": encoding_format}
    call = parse_embeddings_request(json.dumps(asked).encode())
    dimensions = 100_000
    response = EmbedResponse(dimensions=dimensions, vectors=bytes(2 * 4 * dimensions))
    document = json.loads(b"".join(embeddings_pieces(call, response, "m")))
    expected: object = [0.0] * dimensions
    if encoding_format == "base64":
        expected = base64.b64encode(bytes(4 * dimensions)).decode()
    assert [entry["embedding"] for entry in document["data"]] == [expected] * 2


def test_response_without_dimensions_is_a_server_error() -> None:
    with pytest.raises(OpenAIError) as raised:
        answer("float", EmbedResponse())
    assert raised.value.status == 500


def test_model_is_found_by_its_own_names_only() -> None:
    model = Model(id="a", aliases=[ModelAlias(name="org/b")])
    assert model_object(model, "org/b").id == "org/b"
    with pytest.raises(OpenAIError) as raised:
        model_object(model, "c")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")
