"""Tokenize over gRPC, /tokenize and /detokenize, and the count that other endpoints use."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from aiohttp import web
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from edge.handlers.tokens import count_tokens
from inference.registry import MAX_TOKENIZATIONS
from isthmus.v1.generate_pb2 import GenerateRequest, TokenIds
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse
from keys import create_key
from tests.conftest import EMBEDDING, TEXT, Stack, StartStack, eventually

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "w7 w8 w9"}
SLOW = '{"tokenize_seconds": 60}'


@pytest.fixture
def transport() -> str:
    """A count is an RPC of its own with either transport."""
    return "session"


async def post(stack: Stack, path: str, **body: Any) -> tuple[int, Any]:
    async with stack.http.post(path, json=body) as response:
        return response.status, await response.json()


async def refusal(stack: Stack, path: str, **body: Any) -> tuple[int, str | None, str | None]:
    status, document = await post(stack, path, **body)
    assert set(document) == {"error"}
    return status, document["error"]["code"], document["error"]["param"]


async def failure(stack: Stack, request: TokenizeRequest) -> tuple[str, str | None]:
    """Reason and param of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.stub.Tokenize(request)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, info.metadata.get("param")


async def test_text_becomes_tokens_and_tokens_become_text(stack: Stack) -> None:
    status, document = await post(
        stack, "/tokenize", model="scripted", prompt="w7 w8", return_token_strs=True
    )
    assert status == 200
    assert document == {
        "count": 2,
        "max_model_len": 4096,
        "tokens": [7, 8],
        "token_strs": ["w7", "w8"],
    }
    status, document = await post(stack, "/detokenize", model="scripted", tokens=[7, 8])
    assert (status, document) == (200, {"prompt": "w7 w8"})


async def test_responses_have_vllms_members(stack: Stack) -> None:
    _, document = await post(stack, "/tokenize", model="scripted", prompt="hi")
    assert list(document) == ["count", "max_model_len", "tokens", "token_strs"]
    assert document["token_strs"] is None
    assert await post(stack, "/detokenize", model="scripted", tokens=[]) == (200, {"prompt": ""})


async def test_alias_has_its_own_context(stack: Stack) -> None:
    for name, length in (("scripted", 4096), ("tiny", 8)):
        _, document = await post(stack, "/tokenize", model=name, prompt="hi")
        assert document["max_model_len"] == length


async def test_only_text_model_needs_no_name(stack: Stack) -> None:
    assert (await post(stack, "/tokenize", prompt="w1"))[1]["tokens"] == [1]
    assert (await post(stack, "/detokenize", tokens=[1]))[1] == {"prompt": "w1"}


async def test_several_text_models_need_a_name(start_stack: StartStack) -> None:
    stack = await start_stack(TEXT, msgspec.structs.replace(TEXT, id="other", aliases=()))
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [1]})):
        status, document = await post(stack, path, **body)
        assert status == 400
        assert document["error"]["message"] == "you must provide a model parameter"


async def test_prompt_longer_than_the_context_is_counted_not_refused(stack: Stack) -> None:
    _, document = await post(stack, "/tokenize", model="tiny", prompt="hi " * 100)
    assert (document["count"], document["max_model_len"]) == (100, 8)


WORDS = ["w1", "hello", "42", "ünï", "\U0001f600", "[", "\u2028", "a\tb", ""]


async def test_count_equals_the_usage_of_the_same_request(stack: Stack) -> None:
    dice = random.Random("tokens")
    for _ in range(40):
        texts = [" ".join(dice.choices(WORDS, k=dice.randint(1, 12))) for _ in range(3)]
        system, ask, said = texts
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": ask}]},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "w1"},
        ][dice.randint(0, 1) :]
        body = {"model": "scripted", "messages": messages}
        _, counted = await post(stack, "/tokenize", **body)
        _, answer = await post(stack, CHAT, **body, max_tokens=1, return_token_ids=True)
        assert counted["count"] == answer["usage"]["prompt_tokens"] == len(counted["tokens"])
        assert counted["tokens"] == answer["prompt_token_ids"]
        body = {"model": "scripted", "prompt": said}
        _, counted = await post(stack, "/tokenize", **body)
        _, answer = await post(stack, "/v1/completions", **body, max_tokens=1)
        assert counted["count"] == answer["usage"]["prompt_tokens"]


async def test_members_of_a_chat_reach_the_template(stack: Stack) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    seen: list[TokenizeRequest] = []
    tokenize = stack.engine.tokenize

    async def spy(request: TokenizeRequest) -> Any:
        seen.append(request)
        return await tokenize(request)

    stack.engine.tokenize = spy
    status, _ = await post(
        stack,
        "/tokenize",
        model="scripted",
        messages=[USER, {"role": "assistant", "content": "w1"}],
        tools=[tool],
        tool_choice="required",
        reasoning_effort="low",
        continue_final_message=True,
        add_generation_prompt=False,
        chat_template_kwargs={"a": 1},
    )
    assert status == 200
    chat = json_format.MessageToDict(seen[0].chat, preserving_proto_field_name=True)
    assert [tool["name"] for tool in chat.pop("tools")] == ["find"]
    del chat["messages"]
    assert chat == {
        "tool_choice": {"mode": "MODE_REQUIRED"},
        "reasoning_effort": "low",
        "template_arguments_json": '{"a": 1}',
        "add_generation_prompt": False,
        "continue_final_message": True,
    }


async def test_grpc_call_returns_what_it_asks_for(stack: Stack) -> None:
    request = TokenizeRequest(model="tiny", text="w1 w2")
    assert await stack.stub.Tokenize(request) == TokenizeResponse(
        model="scripted", count=2, context_length=8, token_ids=[1, 2]
    )
    request.token_names = True
    assert (await stack.stub.Tokenize(request)).token_names == ["w1", "w2"]
    request.count_only = True
    assert await stack.stub.Tokenize(request) == TokenizeResponse(
        model="scripted", count=2, context_length=8
    )
    request = TokenizeRequest(model="tiny", token_ids=TokenIds(ids=[1, 2]))
    assert await stack.stub.Tokenize(request) == TokenizeResponse(
        model="scripted", count=2, context_length=8, text="w1 w2"
    )


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": None, "messages": None}, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, None, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": [1, 2]}, "invalid_type", "prompt"),
        ("/tokenize", {"messages": []}, "empty_array", "messages"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": []}]},
            "empty_array",
            "messages[0].content",
        ),
        ("/tokenize", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
         None, "messages.[0].role"),
        ("/tokenize", {"messages": [USER], "tool_choice": "auto"}, None, "tool_choice"),
        ("/tokenize", {"messages": [USER], "tools": [{"type": "x"}]}, "invalid_value",
         "tools[0].type"),
        ("/tokenize", {"messages": [USER], "add_special_tokens": True}, "unsupported_value",
         "add_special_tokens"),
        ("/tokenize", {"messages": [USER], "chat_template": "x"}, "unsupported_parameter",
         "chat_template"),
        ("/tokenize", {"prompt": "a", "tools": []}, None, "tools"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {}}, None, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "unknown_parameter", "temperature"),
        ("/tokenize", {"prompt": "x" * 16, "model": 1}, "invalid_type", "model"),
        ("/detokenize", {}, "missing_required_parameter", "tokens"),
        ("/detokenize", {"tokens": "a"}, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "integer_below_min_value", "tokens[0]"),
        ("/detokenize", {"tokens": [2**32]}, "integer_above_max_value", "tokens[0]"),
        ("/detokenize", {"tokens": [1, 50_000]}, "invalid_value", "tokens[1]"),
    ],
)  # fmt: skip
async def test_invalid_request_is_refused_by_name(
    stack: Stack, path: str, body: dict[str, Any], code: str | None, param: str
) -> None:
    assert await refusal(stack, path, **{"model": "scripted"} | body) == (400, code, param)


async def test_models_that_make_no_text_are_refused(stack: Stack) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert await refusal(stack, path, model="ada", **body) == (404, None, "model")
        assert await refusal(stack, path, model="nope", **body) == (404, "model_not_found", None)
    assert await failure(stack, TokenizeRequest(model="ada", text="a")) == (
        "model_not_capable",
        "model",
    )


@pytest.mark.parametrize(
    ("request_", "reason", "param"),
    [
        (TokenizeRequest(model="scripted"), "missing_required_parameter", "prompt"),
        (TokenizeRequest(text="x"), "invalid_request_error", None),
        (TokenizeRequest(model="nope", text="x"), "model_not_found", None),
        (TokenizeRequest(model="scripted", chat={}), "empty_array", "messages"),
        (
            TokenizeRequest(model="scripted", token_ids={}, add_special_tokens=True),
            "unsupported_value",
            "add_special_tokens",
        ),
        (
            TokenizeRequest(model="scripted", token_ids={"ids": [50_000]}),
            "invalid_value",
            "tokens[0]",
        ),
        (
            TokenizeRequest(model="scripted", token_ids={"ids": [1] * (2**20 + 1)}),
            "array_above_max_length",
            "tokens",
        ),
        (
            TokenizeRequest(model="scripted", text="x " * (2**20 + 1)),
            "invalid_request_error",
            None,
        ),
        (
            TokenizeRequest(model="scripted", text='{"fail": "start"}'),
            "server_error",
            None,
        ),
    ],
    ids=lambda value: "" if isinstance(value, TokenizeRequest) else str(value),
)
async def test_invalid_call_is_refused_by_name(
    stack: Stack, request_: TokenizeRequest, reason: str, param: str | None
) -> None:
    assert await failure(stack, request_) == (reason, param)


async def test_count_is_taken_while_the_engine_is_full(start_stack: StartStack) -> None:
    text = msgspec.structs.replace(TEXT, max_running=1, max_queued=0)
    stack = await start_stack(text)
    hang = GenerateRequest(model="scripted", text='{"fail": "hang"}')
    running = stack.stub.Generate(hang)
    await running.read()
    assert (await post(stack, "/tokenize", model="scripted", prompt="w1"))[1]["count"] == 1
    assert (await post(stack, "/v1/completions", model="scripted", prompt="hi"))[0] == 429
    running.cancel()


async def test_counts_above_the_bound_wait_and_above_the_queue_are_refused(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(msgspec.structs.replace(TEXT, max_queued=1))
    served = stack.server.registry.models[0]
    slow = TokenizeRequest(model="scripted", text=SLOW)
    calls = [stack.stub.Tokenize(slow) for _ in range(MAX_TOKENIZATIONS + 1)]
    await eventually(lambda: served.tokenizations.queued == 1)
    assert served.tokenizations.running == MAX_TOKENIZATIONS
    assert not served.admission.running
    reason, _ = await failure(stack, TokenizeRequest(model="scripted", text="x"))
    assert reason == "server_overloaded"
    status, document = await post(stack, "/tokenize", model="scripted", prompt="x")
    assert (status, document["error"]["type"]) == (429, "requests")
    for call in calls:
        call.cancel()
    await eventually(lambda: not served.tokenizations.running and not served.tokenizations.queued)
    assert (await post(stack, "/tokenize", model="scripted", prompt="x"))[0] == 200


async def test_client_that_leaves_ends_its_count(stack: Stack) -> None:
    served = stack.server.registry.models[0]
    asked = asyncio.create_task(post(stack, "/tokenize", model="scripted", prompt=SLOW))
    await eventually(lambda: served.tokenizations.running)
    asked.cancel()
    await eventually(lambda: not served.tokenizations.running)
    await eventually(lambda: not stack.edge.exchanges and not stack.server.registry.running_calls)


async def test_count_has_a_deadline(stack: Stack) -> None:
    began = time.monotonic()
    async with stack.http.post(
        "/tokenize",
        json={"model": "scripted", "prompt": SLOW},
        headers={"x-request-timeout": "0.3"},
    ) as response:
        assert response.status == 504
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("/tokenize", {"prompt": "w1 " * 500}),
        ("/v1/responses/input_tokens", {"input": "w1 " * 500}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "w1 " * 500}]}),
    ],
)
async def test_count_takes_a_request_of_the_key_and_no_tokens(
    start_stack: StartStack, tmp_path: Path, path: str, counted: dict[str, Any]
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "someone")
    text = msgspec.structs.replace(TEXT, requests_per_minute=2, tokens_per_minute=1000)
    stack = await start_stack(text, EMBEDDING, keys=keys, key=key)
    body = {"model": "scripted", **counted}
    for left in (1, 0):
        async with stack.http.post(path, json=body) as response:
            assert response.status == 200
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-remaining-tokens"] == "1000"
    async with stack.http.post(path, json=body) as response:
        assert response.status == 429


async def test_both_routes_need_a_key(start_stack: StartStack, tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "someone")
    stack = await start_stack(keys=tmp_path / "keys.json", key="wrong")
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert (await refusal(stack, path, **body))[0] == 401


async def test_metrics_count_requests_and_no_used_tokens(stack: Stack) -> None:
    await post(stack, "/tokenize", model="scripted", prompt="w1")
    await post(stack, "/detokenize", model="scripted", tokens=[1])
    async with stack.http.get("/metrics") as response:
        lines = [line for line in (await response.text()).splitlines() if '"tokenize"' in line]
    (count,) = (line for line in lines if line.startswith("gen_ai_server_request_duration") and
                "_count" in line)  # fmt: skip
    assert count.endswith(" 2.0")
    usage = [line for line in lines if line.startswith("gen_ai_client_token_usage")]
    assert all(line.endswith(" 0.0") for line in usage)


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ({"chat": {"messages": [{"role": "ROLE_USER", "parts": [{"text": "a b c"}]}]}}, 3),
        ({"text": "a b"}, 2),
        ({"token_ids": {"ids": [5]}}, 1),
    ],
)
async def test_other_endpoints_count_the_prompt_of_a_generation(
    start_stack: StartStack,
    monkeypatch: pytest.MonkeyPatch,
    message: dict[str, Any],
    counted: int,
) -> None:
    monkeypatch.setattr("edge.app.tokenize", _count_of_generation)
    stack = await start_stack()
    assert await post(stack, "/tokenize", **message, model="tiny") == (200, {"count": counted})


async def test_errors_of_a_count_have_the_clients_names(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.app.tokenize", _count_of_generation)
    stack = await start_stack()
    message = {"chat": {"messages": [{"role": "ROLE_USER"}]}}
    assert await refusal(stack, "/tokenize", model="tiny", **message) == (
        400,
        "empty_array",
        "input[0].content",
    )


async def _count_of_generation(request: web.Request) -> web.StreamResponse:
    """A handler as another endpoint has it; the body is a GenerateRequest."""
    message = json_format.ParseDict(await request.json(), GenerateRequest())
    names = {"messages": "input"}
    return web.json_response({"count": (await count_tokens(request, message, names)).count})


async def test_input_tokens_of_a_response_are_those_of_its_usage(stack: Stack) -> None:
    body: Any = {
        "model": "scripted",
        "instructions": "Be brief, please.",
        "input": [
            {"role": "user", "content": "one two"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
        ],
        "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}}],
    }
    counted = await stack.openai.responses.input_tokens.count(**body)
    answer = await stack.openai.responses.create(**body, max_output_tokens=3)
    assert answer.usage is not None
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == answer.usage.input_tokens > 0


async def test_input_tokens_are_refused_as_a_response_is(stack: Stack) -> None:
    for body, code, param in (
        ({"model": "nope", "input": "a"}, "model_not_found", None),
        ({"model": "scripted"}, "missing_required_parameter", "input"),
        ({"model": "scripted", "input": "a", "nope": 1}, "unknown_parameter", "nope"),
    ):
        async with stack.http.post("/v1/responses/input_tokens", json=body) as response:
            error = (await response.json())["error"]
        assert (error["code"], error["param"]) == (code, param)
