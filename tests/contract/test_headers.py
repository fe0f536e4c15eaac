"""The headers that OpenAI's answers carry, whatever the answer is."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from tests.conftest import Stack

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "scripted", "prompt": "hi"}
EMBEDDINGS = {"model": "scripted-embedding", "input": "hi"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", CHAT, 200),
        ("/v1/chat/completions", CHAT | {"stream": True}, 200),
        ("/v1/chat/completions", CHAT | {"n": 0}, 400),
        ("/v1/completions", TEXT, 200),
        ("/v1/completions", TEXT | {"stream": True}, 200),
        ("/v1/embeddings", EMBEDDINGS, 200),
        ("/v1/embeddings", EMBEDDINGS | {"model": "nope"}, 404),
    ],
)
async def test_model_calls(stack: Stack, path: str, body: dict[str, Any], status: int) -> None:
    async with stack.http.post(path, json=body) as response:
        assert response.status == status
        check_every_answer(response.headers)
        assert response.headers["openai-processing-ms"].isdecimal()
        assert response.headers["openai-version"] == "2020-10-01"
        streams = bool(body.get("stream"))
        assert response.headers.get("cache-control") == ("no-cache" if streams else None)
        kind = "text/event-stream" if streams else "application/json"
        assert response.content_type == kind
        await response.read()


async def test_documents_tell_their_own_id_and_time(stack: Stack) -> None:
    ids = set()
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)) * 2:
        async with stack.http.post(path, json=body) as response:
            document = await response.json()
        assert abs(document["created"] - time.time()) < 60
        ids.add(document["id"])
    assert len(ids) == 4


async def test_the_time_that_an_answer_took_is_told(stack: Stack) -> None:
    slow = TEXT | {"prompt": json.dumps({"prefill_seconds": 0.05})}
    async with stack.http.post("/v1/completions", json=slow) as response:
        assert int(response.headers["openai-processing-ms"]) >= 50


async def test_a_stream_that_fails_soon_has_a_true_status(stack: Stack) -> None:
    fails = TEXT | {"prompt": json.dumps({"fail": "start", "prefill_seconds": 0.1})}
    async with stack.http.post("/v1/completions", json=fails | {"stream": True}) as response:
        assert response.status == 500


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/nope", 404),
        ("GET", "/v1/embeddings", 405),
    ],
)
async def test_other_answers(stack: Stack, method: str, path: str, status: int) -> None:
    seen = set()
    for _ in range(2):
        async with stack.http.request(method, path) as response:
            assert response.status == status
            check_every_answer(response.headers)
            seen.add(response.headers["x-request-id"])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
)
async def test_a_document_has_the_same_headers_on_a_connection_that_ends(
    stack: Stack, path: str, body: dict[str, Any]
) -> None:
    """The edge renders the one kind itself, and leaves the other to its HTTP library."""
    seen = []
    for given in ({}, {"connection": "close"}):
        headers = {"x-request-id": "req_test", **given}
        async with stack.http.post(path, json=body, headers=headers) as response:
            document = await response.read()
        told = dict(response.headers)
        assert int(told.pop("Content-Length")) == len(document)
        for name in ("Date", "openai-processing-ms"):
            del told[name]
        seen.append(told)
    assert seen[1].pop("Connection") == "close"
    assert seen[0] == seen[1]
    assert "Connection" not in seen[0]
    assert "server" in {name.lower() for name in seen[0]}


@pytest.mark.parametrize("body", [CHAT, CHAT | {"stream": True}])
async def test_a_draining_edge_ends_its_connections(stack: Stack, body: dict[str, Any]) -> None:
    stack.edge.draining = True
    async with stack.http.post("/v1/chat/completions", json=body) as response:
        await response.read()
    assert response.status == 200
    assert response.headers["connection"] == "close"


def check_every_answer(headers: Any) -> None:
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["access-control-expose-headers"] == "X-Request-ID"


@pytest.fixture
def transport() -> str:
    """Most of these never leave the edge: one transport is enough."""
    return "session"
