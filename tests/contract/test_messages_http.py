"""POST /v1/messages over HTTP: keys, errors and events as Anthropic's clients expect them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ENGINES, ModelConfig
from keys import create_key
from keys.wrong_keys import MAX_WRONG
from tests.conftest import Stack, StartStack

PATH = "/v1/messages"
USER = {"role": "user", "content": "hi"}
BODY: dict[str, Any] = {"model": "scripted", "max_tokens": 2, "messages": [USER]}
JSON_TYPE = {"content-type": "application/json"}
INVALID = "invalid_request_error"
TOOL = {"name": "f", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "x"}


@pytest.fixture
def transport() -> str:
    """These requests end in the edge, so one transport is enough."""
    return "session"


def turns(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return turns({"role": role, "content": list(blocks)}, USER)


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


# Each with the status, the type and what the message has; over a plain request and a stream.
FAULTS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no max_tokens": ({"max_tokens": None}, 400, INVALID, "'max_tokens'"),
    "no messages": ({"messages": []}, 400, INVALID, "'messages'"),
    "no model": ({"model": ""}, 400, INVALID, "model"),
    "an unknown member": ({"foo": 1}, 400, INVALID, "'foo'"),
    "an unknown member of a block": (
        said({"type": "text", "text": "x", "foo": 1}), 400, INVALID, "'messages[0].content[0].foo'",
    ),
    "two formats": (
        {
            "output_format": {"type": "json_schema", "schema": {}},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        400, INVALID, "'output_config.format' and 'output_format'",
    ),
    "an unknown role": (turns({"role": "tool", "content": "x"}), 400, INVALID, "messages[0].role"),
    "an unknown block": (said({"type": "x"}), 400, INVALID, "messages[0].content[0].type"),
    "a document": (said({"type": "document", "source": {}}), 400, INVALID, "'document' blocks"),
    "a search result": (said({"type": "search_result"}), 400, INVALID, "'search_result' blocks"),
    "a result of a server tool": (
        said({"type": "web_search_tool_result"}), 400, INVALID, "'web_search_tool_result'",
    ),
    "an image by address": (
        said(image(type="url", url="http://x")), 400, INVALID, "messages[0].content[0].source.type",
    ),
    "an image of another type": (
        said(image(type="base64", media_type="image/bmp", data="AAAA")), 400, INVALID, "media_type",
    ),
    "an image that is no base64": (
        said(image(type="base64", media_type="image/png", data="?")),
        400, INVALID, "'messages[0].content[0].source.data'",
    ),
    "an image for a model without eyes": (
        {"system": "s", **said({"type": "text", "text": "x"}, image(
            type="base64", media_type="image/png", data="AAAA"))},
        400, INVALID, "messages[0].content[1]",
    ),
    "an image in a result for a model without eyes": (
        {"tools": [TOOL], **turns(USER, {"role": "assistant", "content": [USE]}, {
            "role": "user", "content": [RESULT | {"content": [
                {"type": "text", "text": "x"},
                image(type="base64", media_type="image/png", data="AAAA"),
            ]}]})},
        400, INVALID, "messages[2].content[0].content[1]",
    ),
    "an image in the second of two turns": (
        turns(USER, {"role": "user", "content": [image(
            type="base64", media_type="image/png", data="AAAA")]}),
        400, INVALID, "messages[1].content[0]",
    ),
    "129 uses in one turn": (
        turns(USER, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": [
            USE | {"id": f"t{i}"} for i in range(129)]}, {"role": "user", "content": [
                RESULT | {"tool_use_id": f"t{i}"} for i in range(129)]}),
        400, INVALID, "'messages[2].content[128]'",
    ),
    "a result of no use": (said(RESULT), 400, INVALID, "messages[0].content[0].tool_use_id"),
    "a use without a result": (
        turns(USER, {"role": "assistant", "content": [USE]}, USER), 400, INVALID, "'messages[1]'",
    ),
    "a second use without a result": (
        turns(USER, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": [USE]},
              {"role": "assistant", "content": [USE | {"id": "t2"}]},
              {"role": "user", "content": [RESULT]}, USER), 400, INVALID, "'messages[3]'",
    ),
    "a use at the end": (
        turns(USER, {"role": "assistant", "content": [USE]}), 400, INVALID, "'messages[1]'",
    ),
    "an input that is no object": (
        turns(USER, {"role": "assistant", "content": [USE | {"input": []}]},
              {"role": "user", "content": [RESULT]}),
        400, INVALID, "messages[1].content[0].input",
    ),
    "a temperature of 1.5": ({"temperature": 1.5}, 400, INVALID, "'temperature'"),
    "17 stop sequences": ({"stop_sequences": ["x"] * 17}, 400, INVALID, "'stop_sequences'"),
    "an empty stop sequence": ({"stop_sequences": [""]}, 400, INVALID, "'stop_sequences'"),
    "a long stop sequence": ({"stop_sequences": ["x" * 1025]}, 400, INVALID, "'stop_sequences'"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, 400, INVALID, "tools[0].input_schema"),
    "a tool without a name": (
        {"tools": [TOOL | {"name": None}]}, 400, INVALID, "'tools[0].name'",
    ),
    "a tool with a bad name": ({"tools": [TOOL | {"name": "a b"}]}, 400, INVALID, "tools[0].name"),
    "a tool whose schema is no object": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"},
                   TOOL | {"input_schema": {"type": "string"}}]},
        400, INVALID, "tools[1].input_schema",
    ),
    "a tool of the client": (
        {"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, INVALID, "'bash_20250124'",
    ),
    "a choice without tools": ({"tool_choice": {"type": "any"}}, 400, INVALID, "'tool_choice'"),
    "a choice of no tool": (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
        400, INVALID, "'tool_choice'",
    ),
    "a small budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 5}}, 400, INVALID, "budget_tokens",
    ),
    "a budget above max_tokens": (
        {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 2000}},
        400, INVALID, "'max_tokens'",
    ),
    "a schema that is no object": (
        {"output_config": {"format": {"type": "json_schema", "schema": 1}}},
        400, INVALID, "'output_config.format.schema'",
    ),
    "the same by its older name": (
        {"output_format": {"type": "json_schema", "schema": 1}},
        400, INVALID, "'output_format.schema'",
    ),
    "a container": ({"container": "x"}, 400, INVALID, "'container'"),
    "servers of tools": ({"mcp_servers": [{"type": "url"}]}, 400, INVALID, "'mcp_servers'"),
    "a long prompt": ({"model": "tiny", **turns({"role": "user", "content": "x " * 9})},
                      400, INVALID, "prompt is too long"),
    "an unknown model": ({"model": "nope"}, 404, "not_found_error", "nope"),
    "a model of another kind": ({"model": "ada"}, 404, "not_found_error", "v1/messages endpoint."),
}  # fmt: skip


async def error_of(response: Any) -> dict[str, Any]:
    """The error object of a response, whose envelope and headers are checked."""
    document = await response.json()
    assert document.keys() == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert document["request_id"] == response.headers["request-id"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["error"].keys() <= {"type", "message", "details"}
    error: dict[str, Any] = document["error"]
    return error


async def test_every_fault_gets_its_status_type_and_the_name_of_the_member(stack: Stack) -> None:
    failures = []
    for name, (members, status, kind, words) in FAULTS.items():
        for stream in (False, True):
            body = BODY | members | {"stream": stream}
            async with stack.http.post(PATH, json=body) as response:
                error = await error_of(response)
            if (response.status, error["type"]) != (status, kind) or words not in error["message"]:
                failures.append((name, stream, response.status, error))
    assert not failures


async def test_more_turns_of_one_role_than_a_message_has_room_for(stack: Stack) -> None:
    body = BODY | {"messages": [USER] * 1025}
    async with stack.http.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()


async def test_faults_before_the_body_is_read_have_the_same_form(start_stack: StartStack) -> None:
    stack = await start_stack(max_body_bytes=1000)
    for method, path, options, status, kind in (
        ("POST", PATH, {"data": b"{", "headers": JSON_TYPE}, 400, INVALID),
        ("POST", PATH, {"data": b"{}", "headers": {"content-type": "text/plain"}}, 400, INVALID),
        ("POST", PATH, {"data": b"{}", "headers": JSON_TYPE | {"content-encoding": "gzip"}},
         415, INVALID),
        ("POST", PATH, {"data": b" " * 1001, "headers": JSON_TYPE}, 413, "request_too_large"),
        ("GET", PATH, {}, 405, INVALID),
        ("POST", f"{PATH}/batches", {"data": b"{}"}, 404, "not_found_error"),
    ):  # fmt: skip
        async with stack.http.request(method, path, **options) as response:
            assert response.status == status, (method, path, options)
            assert (await error_of(response))["type"] == kind
    assert response.headers["x-request-id"].startswith("req_")
    async with stack.http.get(PATH) as response:
        assert response.headers["allow"] == "POST"


async def test_no_replica_is_an_overload_with_a_time_to_retry() -> None:
    config = EdgeConfig(port=0, upstreams=("127.0.0.1:1",), settle_seconds=0.0)
    async with serving(config) as (_, port):
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.post(PATH, json=BODY) as response:
                assert response.status == 503
                assert response.headers["retry-after"] == "1"
                assert (await error_of(response))["type"] == "overloaded_error"


async def test_thread_is_refused_so_that_sdks_send_the_whole_conversation(stack: Stack) -> None:
    async with stack.http.post(PATH, json=BODY | {"thread": {"type": "create"}}) as response:
        assert response.status == 400
        error = await error_of(response)
    assert error["details"] == {"error_code": "thread_unsupported_request"}


@pytest.fixture
async def keyed(start_stack: StartStack, tmp_path: Path) -> tuple[Stack, str]:
    path = tmp_path / "keys.json"
    _, key = create_key(path, "someone")
    return await start_stack(keys=path, key="none"), key


@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", "/v1/models")])
async def test_key_may_come_as_x_api_key(
    keyed: tuple[Stack, str], method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stack, key = keyed
    body = BODY if method == "POST" else None
    for headers, status in (
        ({"authorization": "", "x-api-key": key}, 200),
        ({"authorization": "", "x-api-key": f" {key} "}, 200),
        ({"authorization": f"Bearer {key}", "x-api-key": "sk-wrong"}, 200),
        ({"authorization": "Basic x", "x-api-key": key}, 200),
        ({"authorization": "Bearer sk-wrong", "x-api-key": key}, 401),
        ({"authorization": "", "x-api-key": "sk-wrong"}, 401),
        ({"authorization": "", "x-api-key": ""}, 401),
        ({"authorization": ""}, 401),
    ):
        async with stack.http.request(method, path, json=body, headers=headers) as response:
            assert response.status == status, headers
            if status == 401 and path == PATH:
                error = await error_of(response)
                assert error["type"] == "authentication_error"
                if "sk-wrong" not in str(headers):
                    assert "x-api-key header" in error["message"]
            assert "sk-wrong" not in await response.text()
    assert key not in caplog.text
    assert "sk-wrong" not in caplog.text


async def test_wrong_x_api_keys_are_throttled(keyed: tuple[Stack, str]) -> None:
    stack, key = keyed
    for number in range(MAX_WRONG + 1):
        headers = {"authorization": "", "x-api-key": f"wrong-{number}"}
        async with stack.http.post(PATH, json=BODY, headers=headers) as response:
            assert response.status == (401 if number < MAX_WRONG else 429)
            error = await error_of(response)
    assert error["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1
    headers = {"authorization": "", "x-api-key": key}
    async with stack.http.post(PATH, json=BODY, headers=headers) as response:
        assert response.status == 200


async def test_head_of_the_root_needs_no_key(keyed: tuple[Stack, str]) -> None:
    stack, _ = keyed
    async with stack.http.head("/") as response:
        assert response.status == 200


async def test_web_page_may_send_its_key_as_x_api_key(start_stack: StartStack) -> None:
    stack = await start_stack(cors_origins=("https://app.test",))
    asked = {
        "origin": "https://app.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key, anthropic-version, anthropic-beta",
    }
    async with stack.http.options(PATH, headers=asked) as response:
        assert response.status == 204
        assert "x-api-key" in response.headers["access-control-allow-headers"]
    async with stack.http.post(PATH, json=BODY, headers={"origin": "https://app.test"}) as response:
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert "request-id" in exposed


@pytest.mark.parametrize("stream", [False, True])
async def test_versions_betas_and_query_have_no_effect(stack: Stack, stream: bool) -> None:
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,x",
        "x-request-id": "mine",
    }
    path = f"{PATH}?beta=true"
    async with stack.http.post(path, json=BODY | {"stream": stream}, headers=headers) as response:
        assert response.status == 200
        assert response.headers["request-id"] == response.headers["x-request-id"] == "mine"
        assert "openai-version" not in response.headers
        await response.read()


async def test_events_come_in_anthropics_order(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "scripted-replaying", ("tests.replaying_engine", "Replaying"))
    stack = await start_stack(ModelConfig(id="good", engine="scripted-replaying"))
    call = {"index": 0, "id": "call_a", "name": "f", "arguments": '{"a":1}'}
    parts = [
        {"deltas": [{"index": 0, "reasoning": "Hm."}]},
        {"deltas": [{"index": 0, "text": "I "}]},
        {"deltas": [{"index": 0, "text": "see."}]},
        {"deltas": [{"index": 0, "tool_calls": [call]}]},
        {
            "finishes": [{"index": 0, "reason": "FINISH_REASON_TOOL_CALLS"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        },
    ]
    body = BODY | turns({"role": "user", "content": json.dumps(parts)})
    body |= {"model": "good", "stream": True, "tools": [TOOL]}
    async with stack.http.post(PATH, json=body) as response:
        text = await response.text()
    events = [event.split("\n") for event in text.split("\n\n")[:-1]]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [each["type"] for each in data]
    seen = [
        (each["type"].removeprefix("content_"), *([each["index"]] if "index" in each else []),
         *([each["delta"]["type"]] if "index" in each and "delta" in each else []))
        for each in data
    ]  # fmt: skip
    # One step of the engine may merge into one delta what the script sends as two.
    texts = seen.count(("block_delta", 1, "text_delta"))
    assert seen == [
        ("message_start",),
        ("ping",),
        ("block_start", 0),
        ("block_delta", 0, "thinking_delta"),
        ("block_delta", 0, "signature_delta"),
        ("block_stop", 0),
        ("block_start", 1),
        *[("block_delta", 1, "text_delta")] * texts,
        ("block_stop", 1),
        ("block_start", 2),
        ("block_delta", 2, "input_json_delta"),
        ("block_stop", 2),
        ("message_delta",),
        ("message_stop",),
    ]
    assert data[-2]["delta"]["stop_reason"] == "tool_use"


async def test_keys_of_the_client_choose_the_replica(stack: Stack) -> None:
    seen: list[str] = []
    opened = stack.edge.router.open

    def note(call: Any, receiver: Any, options: Any) -> Any:
        seen.append(options.affinity())
        return opened(call, receiver, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack.edge.router, "open", note)
        for headers in ({}, {"x-claude-code-session-id": "s1"}, {"x-session-id": "s2"}):
            async with stack.http.post(PATH, json=BODY, headers=headers) as response:
                assert response.status == 200
    assert seen == ["", "s1", "s2"]


async def test_metrics_count_it_as_a_chat(stack: Stack) -> None:
    async with stack.http.post(PATH, json=BODY) as response:
        assert response.status == 200
    async with stack.http.get("/metrics") as response:
        text = await response.text()
    assert f'isthmus_http_responses_total{{code="200",method="POST",path="{PATH}"}} 1' in text
    assert 'gen_ai_operation_name="chat"' in text
