"""Every response carries the headers that OpenAI's responses carry."""

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
async def test_model_endpoints_send_openai_headers_for_every_status(
    stack: Stack, path: str, body: dict[str, Any], status: int
) -> None:
    async with stack.http.post(path, json=body) as response:
        assert response.status == status
        check_common_headers(response.headers)
        assert response.headers["openai-processing-ms"].isdecimal()
        assert response.headers["openai-version"] == "2020-10-01"
        streams = bool(body.get("stream"))
        assert response.headers.get("cache-control") == ("no-cache" if streams else None)
        kind = "text/event-stream" if streams else "application/json"
        assert response.content_type == kind
        await response.read()


async def test_each_response_has_its_own_id_and_creation_time(stack: Stack) -> None:
    ids = set()
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)) * 2:
        async with stack.http.post(path, json=body) as response:
            document = await response.json()
        assert abs(document["created"] - time.time()) < 60
        ids.add(document["id"])
    assert len(ids) == 4


async def test_processing_ms_header_covers_the_time_in_the_engine(stack: Stack) -> None:
    slow = TEXT | {"prompt": json.dumps({"prefill_seconds": 0.05})}
    async with stack.http.post("/v1/completions", json=slow) as response:
        assert int(response.headers["openai-processing-ms"]) >= 50


async def test_stream_failing_before_its_headers_gets_an_error_status(stack: Stack) -> None:
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
async def test_every_response_gets_a_new_request_id(
    stack: Stack, method: str, path: str, status: int
) -> None:
    seen = set()
    for _ in range(2):
        async with stack.http.request(method, path) as response:
            assert response.status == status
            check_common_headers(response.headers)
            seen.add(response.headers["x-request-id"])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
)
async def test_response_headers_are_the_same_with_connection_close(
    stack: Stack, path: str, body: dict[str, Any]
) -> None:
    """The edge writes keep-alive responses itself; aiohttp writes those that close."""
    seen = []
    for given in ({}, {"connection": "close"}):
        sent = {"x-request-id": "req_test", **given}
        async with stack.http.post(path, json=body, headers=sent) as response:
            document = await response.read()
        headers = dict(response.headers)
        assert int(headers.pop("Content-Length")) == len(document)
        for name in ("Date", "openai-processing-ms"):
            del headers[name]
        seen.append(headers)
    assert seen[1].pop("Connection") == "close"
    assert seen[0] == seen[1]
    assert "Connection" not in seen[0]
    assert "server" in {name.lower() for name in seen[0]}


@pytest.mark.parametrize("body", [CHAT, CHAT | {"stream": True}])
async def test_draining_edge_sends_connection_close(stack: Stack, body: dict[str, Any]) -> None:
    stack.edge.draining = True
    async with stack.http.post("/v1/chat/completions", json=body) as response:
        await response.read()
    assert response.status == 200
    assert response.headers["connection"] == "close"


def check_common_headers(headers: Any) -> None:
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["access-control-expose-headers"] == "X-Request-ID"


@pytest.fixture
def transport() -> str:
    """Most of these requests end in the edge, so one transport is enough."""
    return "session"
