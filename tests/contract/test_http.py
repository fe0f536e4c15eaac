"""The HTTP API without an SDK: stream bytes, headers, statuses, keys, limits and timeouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from keys import create_key
from tests.conftest import Stack, StartStack, eventually

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


async def post(stack: Stack, path: str, **arguments: Any) -> tuple[int, dict[str, Any], Any]:
    async with stack.http.post(path, **arguments) as response:
        return response.status, await response.json(), response.headers


@asynccontextmanager
async def raw_post(
    stack: Stack, path: str, body: bytes, length: int | None = None, version: str = "1.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Sends a request over its own socket, which closes with the context."""
    port = int(stack.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(
        f"POST {path} HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body) if length is None else length}\r\n\r\n".encode()
        + body
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def test_stream_bytes_match_openai(stack: Stack) -> None:
    async with stack.http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["transfer-encoding"] == "chunked"
        body = (await response.read()).decode()
    events = body.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert "\r" not in body


async def test_internal_error_during_a_stream_is_its_last_event(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("canary-stream")

    monkeypatch.setattr("edge.exchange.runner._send_to_the_end", fail)
    endless = CHAT | {"messages": [{"role": "user", "content": '{"fail": "hang"}'}]}
    for _ in range(2):
        async with stack.http.post(
            "/v1/chat/completions", json=endless | {"stream": True, "max_tokens": 9}
        ) as response:
            assert response.status == 200
            *_, last, rest = (await response.text()).split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert not rest
        assert "canary" not in last
        assert f"request {response.headers['x-request-id']} failed" in caplog.text
        await eventually(lambda: stack.engine.health().running == 0)
    # The first body ended properly, so the second request reused its connection.
    assert stack.http.connector is not None
    assert sum(len(pool) for pool in stack.http.connector._conns.values()) == 1


async def test_connection_closes_when_the_end_of_a_stream_fails(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: object) -> None:
        raise ValueError("canary-stream")

    monkeypatch.setattr("edge.exchange.event_stream.EventStream.close", fail)
    body = json.dumps(CHAT | {"stream": True}).encode()
    async with raw_post(stack, "/v1/chat/completions", body) as (reader, _):
        async with asyncio.timeout(10):
            answer = await reader.read()  # until the connection closes
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")


async def test_connection_is_reused_after_a_stream(stack: Stack) -> None:
    for _ in range(3):
        async with stack.http.post(
            "/v1/chat/completions", json=CHAT | {"stream": True}
        ) as response:
            await response.read()
    assert stack.http.connector is not None
    assert sum(len(pool) for pool in stack.http.connector._conns.values()) == 1


async def test_http_1_0_stream_is_not_chunked(stack: Stack) -> None:
    body = json.dumps(CHAT | {"stream": True}).encode()
    async with raw_post(stack, "/v1/chat/completions", body, version="1.0") as (reader, _):
        answer = (await reader.read()).decode()
    head, _, events = answer.partition("\r\n\r\n")
    assert "chunked" not in head.lower()
    assert events.startswith("data: {")
    assert events.endswith("data: [DONE]\n\n")


async def test_stream_is_whole_when_its_headers_precede_the_first_token(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(header_hold_seconds=0.05)
    slow = {"prompt": json.dumps({"prefill_seconds": 0.3}), "max_tokens": 2, "stream": True}
    body = json.dumps({"model": "scripted"} | slow).encode()
    async with raw_post(stack, "/v1/completions", body, version="1.0") as (reader, _):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.")
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_large_completion_is_returned_whole(stack: Stack) -> None:
    large = {"model": "scripted", "prompt": json.dumps({"tokens": 3000}), "max_tokens": 3000}
    status, answer, _ = await post(stack, "/v1/completions", json=large | {"n": 4, "logprobs": 1})
    assert status == 200
    assert [len(c["logprobs"]["tokens"]) for c in answer["choices"]] == [3000] * 4


async def test_every_response_carries_a_request_id(stack: Stack) -> None:
    async with stack.http.get("/v1/models") as response:
        assert response.headers["x-request-id"].startswith("req_")
    async with stack.http.get("/v1/models", headers={"x-request-id": "mine-1"}) as response:
        assert response.headers["x-request-id"] == "mine-1"
    _, _, headers = await post(stack, "/v1/chat/completions", json={"model": "nope"})
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, None),
        (b'{"model": "scripted", "messages": [NaN]}', None, None),
        (b"[1]", None, None),
        (b'{"model": "scripted"}', "messages", "missing_required_parameter"),
        (b'{"model": "scripted", "messages": []}', "messages", "empty_array"),
        (
            b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "n": true}',
            "n",
            "invalid_type",
        ),
        (
            b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "nope": 1}',
            "nope",
            "unknown_parameter",
        ),
        (
            b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"temperature":3}',
            "temperature",
            "decimal_above_max_value",
        ),
    ],
)
async def test_error_for_an_invalid_body_names_the_parameter(
    stack: Stack, body: bytes, param: str | None, code: str | None
) -> None:
    status, answer, _ = await post(
        stack, "/v1/chat/completions", data=body, headers={"content-type": "application/json"}
    )
    assert status == 400
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert answer["error"]["type"] == "invalid_request_error"
    status, _, _ = await post(stack, "/v1/chat/completions", json=CHAT)
    assert status == 200


async def test_wrong_content_type_and_content_encoding_are_refused(stack: Stack) -> None:
    status, answer, _ = await post(
        stack, "/v1/chat/completions", data=b"{}", headers={"content-type": "text/plain"}
    )
    assert (status, answer["error"]["code"]) == (400, "unsupported_content_type")
    status, _, _ = await post(
        stack,
        "/v1/chat/completions",
        data=b"{}",
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert status == 415


async def test_body_one_byte_over_the_limit_is_refused(start_stack: StartStack) -> None:
    stack = await start_stack(max_body_bytes=2000)
    empty = len(json.dumps(CHAT | {"user": ""}))
    for extra, expected in ((0, 200), (1, 413)):
        body = json.dumps(CHAT | {"user": "x" * (2000 - empty + extra)})
        assert len(body) == 2000 + extra
        headers = {"content-type": "application/json"}
        status, _, _ = await post(
            stack, "/v1/chat/completions", data=body.encode(), headers=headers
        )
        assert status == expected

        async def chunked(body: str = body) -> Any:
            yield body.encode()

        status, _, _ = await post(stack, "/v1/chat/completions", data=chunked(), headers=headers)
        assert status == expected


async def test_incomplete_body_times_out(start_stack: StartStack) -> None:
    stack = await start_stack(body_seconds=0.2)
    async with raw_post(stack, "/v1/completions", b"{", length=100) as (reader, _):
        async with asyncio.timeout(10):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"body_timeout" in answer


async def test_unknown_paths_methods_and_models_get_openai_errors(stack: Stack) -> None:
    status, answer, _ = await post(stack, "/v1/nope", json={})
    assert (status, answer["error"]["message"]) == (404, "Invalid URL (POST /v1/nope)")
    async with stack.http.get("/v1/embeddings") as response:
        assert response.status == 405
        assert response.headers["allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_supported"
    async with stack.http.get("/v1/models/nope") as response:
        assert response.status == 404
        assert (await response.json())["error"]["param"] == "model"


async def test_model_of_another_kind_is_refused(stack: Stack) -> None:
    text = {"model": "scripted-embedding", "prompt": "x"}
    for path, body, expected in (
        ("/v1/chat/completions", CHAT | {"model": "ada"}, (404, "model")),
        ("/v1/completions", text, (404, "model")),
        ("/v1/embeddings", {"model": "gpt-4", "input": "x"}, (403, None)),
    ):
        status, answer, _ = await post(stack, path, json=body)
        assert (status, answer["error"]["param"]) == expected


async def test_only_embedding_model_is_the_default(stack: Stack) -> None:
    status, answer, _ = await post(stack, "/v1/embeddings", json={"input": ["x"]})
    assert (status, answer["model"]) == (200, "scripted-embedding")


async def test_model_name_with_a_slash_is_found_in_the_path(stack: Stack) -> None:
    for path in ("/v1/models/org/name", "/v1/models/org%2Fname"):
        async with stack.http.get(path) as response:
            assert (await response.json())["id"] == "org/name"


async def test_every_route_except_health_requires_a_key(
    start_stack: StartStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    stack = await start_stack(keys=keys, key=key)
    status, _, _ = await post(stack, "/v1/chat/completions", json=CHAT)
    assert status == 200
    app_routes = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("HEAD", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/embeddings"),
        ("OPTIONS", "/v1/embeddings"),
    ]
    for method, path in app_routes:
        for header in ("", "Bearer ", "Bearer wrong", "Basic " + key, "Bearer \xff\xfe"):
            async with stack.http.request(
                method, path, headers={"authorization": header, "host": "x/health?"}
            ) as response:
                assert response.status == 401, (method, path, header)
                if method != "HEAD":
                    assert key not in await response.text()
    for path in ("/health", "/ready"):
        async with stack.http.get(path, headers={"authorization": ""}) as response:
            assert response.status == 200
    status, _, _ = await post(stack, "/nope", headers={"authorization": ""})
    assert status == 404


async def test_keep_alive_comments_are_sent_while_a_stream_is_silent(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.exchange.runner.TICK_SECONDS", 0.05)
    stack = await start_stack(sse_keepalive_seconds=0.1, request_seconds=1.0)
    hang = CHAT | {
        "messages": [{"role": "user", "content": '{"fail": "hang"}'}],
        "max_tokens": 9,
        "stream": True,
    }
    async with stack.http.post("/v1/chat/completions", json=hang) as response:
        body = await response.read()
    assert b": keep-alive\n" in body
    assert b": keep-alive\n\n" not in body
    assert b'"code":"deadline_exceeded"' in body
    assert b"[DONE]" not in body


async def test_client_that_does_not_read_is_disconnected(start_stack: StartStack) -> None:
    stack = await start_stack(max_pending_bytes=64 * 1024)
    # 64 choices of 400 kB each, which is more than the socket buffers hold.
    flood = {"prompt": json.dumps({"text": f"{'x' * 400} " * 1000}), "max_tokens": 1000, "n": 64}
    body = json.dumps({"model": "scripted", "stream": True} | flood).encode()
    async with raw_post(stack, "/v1/completions", body) as (_, writer):
        writer.transport.pause_reading()
        await eventually(lambda: stack.engine.health().running == 1)
        await eventually(lambda: stack.engine.health().running == 0)
    assert stack.engine.health().generated_tokens < 64_000
