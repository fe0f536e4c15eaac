"""Every golden pair matches byte for byte."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest

from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.images.request import parse_image_request
from edge.openai.models import model_object, models_list
from edge.openai.tokens.request import parse_detokenization, parse_tokenization
from edge.openai.tokens.response import detokenization, tokenization
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.models_pb2 import ImageCapabilities, Model
from isthmus.v1.tokenize_pb2 import TokenizeResponse
from isthmus.v1.usage_pb2 import Usage
from tests.unit.openai.golden_files import (
    IDENTITY,
    Case,
    body_of,
    cases,
    document_bytes,
    embeddings_pieces,
    expected_named_stream,
    expected_stream,
    fields,
    image_document_bytes,
    image_stream_bytes,
    message,
    parse,
    stream_bytes,
)


@pytest.mark.parametrize(("folder", "case"), cases("chat", "completions"))
def test_chat_and_completion_pairs_match(folder: str, case: Case) -> None:
    call = parse(folder, case)
    if "calls" in case:
        assert [fields(request) for request in call.requests] == case["calls"]
    assert call.model == json.loads(body_of(case))["model"]
    assert call.stream is ("events" in case)
    if "events" in case:
        sent = stream_bytes(call.stream_translator(IDENTITY), case["sources"])
        assert sent.decode() == expected_stream(case["events"]).decode()
    elif "document" in case:
        answer = document_bytes(call.document_translator(IDENTITY), case["sources"])
        assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("folder", "case"), cases("responses"))
def test_response_pairs_match(folder: str, case: Case) -> None:
    call = parse(folder, case)
    assert [fields(request) for request in call.requests] == case["calls"]
    assert call.stream is ("events" in case)
    if "events" in case:
        sent = stream_bytes(call.stream_translator(IDENTITY), case["sources"])
        assert sent.decode() == expected_named_stream(case["events"]).decode()
    elif "document" in case:
        answer = document_bytes(call.document_translator(IDENTITY), case["sources"])
        assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("_folder", "case"), cases("embeddings"))
def test_embedding_pairs_match(_folder: str, case: Case) -> None:
    call = parse_embeddings_request(body_of(case))
    assert fields(call.request) == case["call"]
    if "document" not in case:
        return
    rows: list[list[float]] = case["vectors"]
    response = EmbedResponse(
        dimensions=len(rows[0]),
        vectors=b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows),
        token_counts=case["token_counts"],
        usage=Usage(prompt_tokens=sum(case["token_counts"])),
    )
    answer = b"".join(embeddings_pieces(call, response, call.model or "default-model"))
    assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("_folder", "case"), cases("images"))
def test_image_pairs_match(_folder: str, case: Case) -> None:
    call = parse_image_request(body_of(case))
    call.set_model(call.request.model or "default-model", ImageCapabilities(default_steps=20))
    assert fields(call.request) == case["call"]
    assert call.stream is ("events" in case)
    parts = [message(part, GenerateImageResponse) for part in case.get("parts", ())]
    if "events" in case:
        sent = image_stream_bytes(call, parts)
        assert sent.decode() == expected_named_stream(case["events"]).decode()
    elif "document" in case:
        answer = image_document_bytes(call, parts, case.get("urls"))
        assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("folder", "case"), cases("tokenize", "detokenize"))
def test_token_pairs_match(folder: str, case: Case) -> None:
    is_text = folder == "tokenize"
    parse_tokens = parse_tokenization if is_text else parse_detokenization
    call = parse_tokens(body_of(case), "default-model")
    assert fields(call) == case["call"]
    if "document" not in case:
        return
    response = message(case["response"], TokenizeResponse)
    answer = (
        tokenization(response, with_names=call.token_names) if is_text else detokenization(response)
    )
    assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("_folder", "case"), cases("models"))
def test_model_list_pairs_match(_folder: str, case: dict[str, Any]) -> None:
    models = [message(model, Model) for model in case["models"]]
    document = msgspec.json.encode(models_list(models))
    assert document.decode() == msgspec.json.encode(case["document"]).decode()
    for listed in case["document"]["data"]:
        owner = next(m for m in models if m.id == listed["root"])
        assert msgspec.to_builtins(model_object(owner, listed["id"])) == listed
