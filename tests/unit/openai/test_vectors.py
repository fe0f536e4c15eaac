"""Vectors arrive as they were sent, in both encodings, and models by all their names."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from edge.openai.embeddings import embeddings_answer, parse_embeddings_request
from edge.openai.errors import OpenAIError
from edge.openai.models import model_object
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.models_pb2 import Model, ModelAlias

ROWS, DIMENSIONS = 7, 384


def answer(encoding_format: str, response: EmbedResponse) -> dict[str, object]:
    asked = {"model": "m", "input": ["x"] * ROWS, "encoding_format": encoding_format}
    call = parse_embeddings_request(json.dumps(asked).encode())
    document: dict[str, object] = json.loads(embeddings_answer(call, response, "m"))
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
def test_a_matrix_of_the_wrong_size_is_our_fault(size: int) -> None:
    with pytest.raises(OpenAIError) as raised:
        answer("base64", EmbedResponse(dimensions=DIMENSIONS, vectors=b"\0" * size))
    assert raised.value.status == 500


def test_no_dimensions_are_our_fault() -> None:
    with pytest.raises(OpenAIError) as raised:
        answer("float", EmbedResponse())
    assert raised.value.status == 500


def test_a_model_has_only_its_own_names() -> None:
    model = Model(id="a", aliases=[ModelAlias(name="org/b")])
    assert json.loads(model_object(model, "org/b"))["id"] == "org/b"
    with pytest.raises(OpenAIError) as raised:
        model_object(model, "c")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")
