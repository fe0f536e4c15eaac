"""The official Anthropic SDK for Python against the stack: responses, streams, tools and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from pydantic import BaseModel

from inference.config import ENGINES, AliasConfig, ModelConfig
from isthmus.v1.chat_pb2 import ROLE_SYSTEM, ROLE_TOOL, ROLE_USER
from tests.conftest import NO_CERTIFICATES, Stack, StartStack, eventually

HELLO = [{"role": "user", "content": "hello there"}]
WISH = [{"role": "user", "content": "Use get_weather with city = Rome."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # noqa: E501
THOUGHT = [
    {"deltas": [{"index": 0, "reasoning": "Paris is"}]},
    {"deltas": [{"index": 0, "reasoning": " a city."}]},
    {"deltas": [{"index": 0, "text": "I look"}]},
    {"deltas": [{"index": 0, "text": " it up."}]},
    {"deltas": [{"index": 0, "tool_calls": [{"index": 0, "id": "call_a", "name": "get_weather"}]}]},
    {"deltas": [{"index": 0, "tool_calls": [{"index": 0, "arguments": '{"city": '}]}]},
    {
        "deltas": [
            {
                "index": 0,
                "tool_calls": [
                    {"index": 0, "arguments": '"Paris"}'},
                    {"index": 1, "id": "call_b", "name": "get_weather", "arguments": "{}"},
                ],
            }
        ],
        "finishes": [{"index": 0, "reason": "FINISH_REASON_TOOL_CALLS"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 7,
            "cached_tokens": 4,
            "reasoning_tokens": 2,
        },
    },
]


@pytest.fixture
def transport() -> str:
    """No test here depends on the upstream transport, so one is enough."""
    return "session"


def client_of(stack: Stack, **settings: Any) -> AsyncAnthropic:
    http_client = DefaultAsyncHttpxClient(verify=NO_CERTIFICATES)
    given = {"api_key": "none", "max_retries": 0, "http_client": http_client} | settings
    return AsyncAnthropic(base_url=stack.url, **given)


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[AsyncAnthropic]:
    async with client_of(stack) as made:
        yield made


@pytest.fixture
async def good(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A stack whose model uses tools and thinks as the test says."""
    monkeypatch.setitem(ENGINES, "scripted-replaying", ("tests.replaying_engine", "Replaying"))
    aliases = (AliasConfig(name="short", context_length=12),)
    return await start_stack(ModelConfig(id="good", engine="scripted-replaying", aliases=aliases))


@pytest.fixture
async def messages(good: Stack) -> AsyncIterator[Any]:
    async with client_of(good) as made:
        yield made.messages


async def streamed(messages: Any, /, **body: Any) -> tuple[anthropic.types.Message, list[str]]:
    """The message that the SDK makes of a stream, and the types of its events."""
    async with messages.stream(**body) as stream:
        # The SDK adds events of its own, which have other types.
        kinds = [event.type async for event in stream]
        return await stream.get_final_message(), kinds


async def test_message_has_anthropics_shape(client: AsyncAnthropic) -> None:
    answer = await client.messages.create(model="gpt-4", max_tokens=3, messages=HELLO)
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "gpt-4")
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "w0 w1 w2 "}]
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 3)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")
    whole = await client.messages.create(model="gpt-4", max_tokens=100, messages=HELLO)
    assert whole.stop_reason == "end_turn"


async def test_streamed_message_equals_the_plain_one(client: AsyncAnthropic) -> None:
    body: Any = {"model": "gpt-4", "max_tokens": 5, "messages": HELLO}
    plain = await client.messages.create(**body)
    message, kinds = await streamed(client.messages, **body)
    assert message.to_dict() | {"id": ""} == plain.to_dict() | {"id": ""}
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_thinking_text_and_calls_are_blocks_plain_and_streamed(messages: Any) -> None:
    body: Any = {
        "model": "good",
        "max_tokens": 2000,
        "messages": [{"role": "user", "content": json.dumps(THOUGHT)}],
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    plain = await messages.create(**body)
    message, kinds = await streamed(messages, **body)
    assert [block.to_dict() for block in plain.content] == [
        {"type": "thinking", "thinking": "Paris is a city.", "signature": ""},
        {"type": "text", "text": "I look it up."},
        {"type": "tool_use", "id": "call_a", "name": "get_weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "get_weather", "input": {}},
    ]
    assert plain.stop_reason == "tool_use"
    assert plain.usage.to_dict() == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    assert message.to_dict() | {"id": ""} == plain.to_dict() | {"id": ""}
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_make_a_round_trip(good: Stack, messages: Any, stream: bool) -> None:
    body: Any = {"model": "good", "max_tokens": 50, "tools": [WEATHER]}
    if stream:
        asked, _ = await streamed(messages, **body, messages=WISH)
    else:
        asked = await messages.create(**body, messages=WISH)
    (use,) = asked.content
    assert asked.stop_reason == "tool_use"
    assert (use.type, use.name, use.input) == ("tool_use", "get_weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns = [
        *WISH,
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [result]},
    ]
    answer = await messages.create(**body, messages=turns)
    assert answer.content[0].text == "The tools returned: sunny"
    assert answer.stop_reason == "end_turn"
    *_, call, returned = good.engine.requests[-1].chat.messages
    assert json.loads(call.tool_calls[0].arguments) == {"city": "Rome"}
    assert (returned.role, returned.tool_call_id) == (ROLE_TOOL, use.id)


async def test_sdks_tool_runner_runs_a_tool(messages: Any, good: Stack) -> None:
    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    async with client_of(good) as client:
        runner = client.beta.messages.tool_runner(
            model="good", max_tokens=50, tools=[get_weather], messages=WISH
        )
        last = await runner.until_done()
    assert last.content[0].text == "The tools returned: sunny in Rome"


@pytest.mark.parametrize(
    ("choice", "reason"), [({"type": "any"}, "tool_use"), ({"type": "none"}, "end_turn")]
)
async def test_tool_choice_forces_or_forbids_a_tool(
    messages: Any, choice: Any, reason: str
) -> None:
    turns = HELLO if choice["type"] == "any" else WISH
    answer = await messages.create(
        model="good", max_tokens=50, tools=[WEATHER], tool_choice=choice, messages=turns
    )
    assert answer.stop_reason == reason


async def test_only_one_tool_is_used_if_parallel_use_is_disabled(messages: Any) -> None:
    other = WEATHER | {"name": "get_time"}
    turns = [{"role": "user", "content": "Use get_weather and get_time with city = Rome."}]
    for choice, count in (
        ({"type": "auto"}, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1),
    ):
        answer = await messages.create(
            model="good",
            max_tokens=50,
            tools=[WEATHER, other],
            tool_choice=choice,
            messages=turns,
        )
        assert len(answer.content) == count


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


async def test_structured_output_is_parsed_by_the_sdk(messages: Any) -> None:
    turns = [{"role": "user", "content": "city = Rome, inhabitants = 42"}]
    body: Any = {"model": "good", "max_tokens": 50, "messages": turns, "output_format": City}
    answer = await messages.parse(**body)
    assert answer.parsed_output == City(city="Rome", inhabitants=42)


async def test_conversation_reaches_the_service_as_a_chat(good: Stack, messages: Any) -> None:
    picture: Any = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
    }
    await messages.create(
        model="good",
        max_tokens=50,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "y"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "dark"}, picture],
                    },
                    {"type": "text", "text": "Now?"},
                ],
            },
            {"role": "system", "content": "It is night."},
        ],
        stop_sequences=["###"],
        # The SDK does not know the parameters of earlier models any more.
        extra_body={"temperature": 0.5, "top_k": 3, "top_p": 0.9},
        tools=[WEATHER | {"name": "look"}],
        metadata={"user_id": "u"},
    )
    (sent,) = good.engine.requests
    chat = sent.chat.messages
    assert [message.role for message in chat[:2]] == [ROLE_SYSTEM, ROLE_USER]
    assert chat[0].parts[0].text == "Be brief."
    assert chat[1].parts[1].image.mime_type == "image/png"
    assert chat[2].reasoning == "Hm."
    assert chat[2].parts[0].text == "I look."
    assert json.loads(chat[2].tool_calls[0].arguments) == {"a": 1}
    assert (chat[3].role, chat[3].tool_call_id) == (ROLE_TOOL, "toolu_1")
    assert chat[3].parts[0].text == "Error: dark"
    assert chat[4].parts[0].image.data
    assert chat[4].parts[1].text == "Now?"
    assert (chat[5].role, chat[5].parts[0].text) == (ROLE_SYSTEM, "It is night.")
    assert [*sent.stopping.strings] == ["###"]
    assert (sent.stopping.max_tokens, sent.sampling.top_k) == (50, 3)


async def test_billing_header_in_the_system_text_does_not_change_the_prompt(
    good: Stack, messages: Any
) -> None:
    for turn, more in ((1, []), (2, [{"role": "assistant", "content": "x"}, *HELLO])):
        for system in (
            f"x-anthropic-billing-header: cc_version=2; cch=abc{turn};\nYou are an agent.",
            [
                {"type": "text", "text": f"x-anthropic-billing-header: cch=abc{turn};"},
                {"type": "text", "text": "You are an agent."},
            ],
        ):
            await messages.create(
                model="good", max_tokens=5, system=system, messages=[*HELLO, *more]
            )
    beginnings = [
        [message.SerializeToString() for message in sent.chat.messages[:2]]
        for sent in good.engine.requests
    ]
    assert beginnings[0][0]
    assert all(beginning == beginnings[0] for beginning in beginnings)
    assert good.engine.requests[0].chat.messages[0].parts[0].text == "You are an agent."


async def test_prefix_cache_holds_on_the_second_turn(start_stack: StartStack) -> None:
    stack = await start_stack(
        ModelConfig(id="cached", engine="scripted", engine_args={"prefix_cache": True})
    )
    system = "You are an agent. " * 40
    turns: Any = [*HELLO]
    read = []
    async with client_of(stack) as client:
        for turn in (1, 2):
            answer = await client.messages.create(
                model="cached",
                max_tokens=5,
                system=f"x-anthropic-billing-header: cch=abc{turn};\n{system}",
                messages=turns,
            )
            read.append(answer.usage.cache_read_input_tokens)
            turns += [{"role": "assistant", "content": answer.content}, *HELLO]
    assert read[0] == 0
    assert read[1] is not None
    assert read[1] > 100


async def test_count_of_tokens_is_that_of_the_usage(client: AsyncAnthropic) -> None:
    body: Any = {
        "model": "scripted",
        "system": "x-anthropic-billing-header: cch=1;\nBe brief, please.",
        "messages": [*HELLO, {"role": "assistant", "content": "Yes?"}, *HELLO],
        "tools": [WEATHER],
        "thinking": {"type": "adaptive"},
    }
    counted = await client.messages.count_tokens(**body)
    answer = await client.messages.create(**body, max_tokens=5)
    assert counted.input_tokens == answer.usage.input_tokens > 0


async def test_count_of_tokens_fails_as_a_message_does(messages: Any) -> None:
    for body, error in (
        ({"messages": HELLO, "model": "nope"}, anthropic.NotFoundError),
        ({"messages": [], "model": "good"}, anthropic.BadRequestError),
    ):
        with pytest.raises(error) as caught:
            await messages.count_tokens(**body)
        assert caught.value.body["type"] == "error"


async def test_max_tokens_beyond_the_context_are_cut(messages: Any) -> None:
    answer = await messages.create(model="short", max_tokens=20_000, messages=HELLO)
    assert answer.stop_reason == "end_turn"
    long = [{"role": "user", "content": "word " * 9}]
    answer = await messages.create(model="short", max_tokens=20_000, messages=long)
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.output_tokens == 3
    answer = await messages.create(model="short", max_tokens=2, messages=long)
    assert answer.stop_reason == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
async def test_prompt_beyond_the_context_is_400_with_the_words_that_clients_look_for(
    client: AsyncAnthropic, stream: bool
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .* 8") as caught:
        await client.messages.create(
            model="tiny",
            max_tokens=5,
            messages=[{"role": "user", "content": "x " * 9}],
            stream=stream,
        )
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_is_404(client: AsyncAnthropic, stream: bool) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="nope", max_tokens=5, messages=HELLO, stream=stream)
    assert caught.value.type == "not_found_error"
    body: Any = caught.value.body
    assert body["request_id"] == caught.value.request_id


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"fail": "start"}, anthropic.InternalServerError),
        ({"fail": "refuse"}, anthropic.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_token_gets_an_error_status(
    client: AsyncAnthropic, script: Any, error: type[anthropic.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as caught:
        await client.messages.create(
            model="scripted",
            max_tokens=5,
            messages=[{"role": "user", "content": json.dumps(script)}],
            stream=stream,
        )
    assert "canary" not in str(caught.value)


async def test_failure_during_a_stream_is_an_error_event(client: AsyncAnthropic) -> None:
    stream = await client.messages.create(
        model="scripted",
        max_tokens=50,
        messages=[{"role": "user", "content": json.dumps({"fail": "mid"})}],
        stream=True,
    )
    text = ""
    with pytest.raises(anthropic.APIError) as caught:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                text += event.delta.text
    assert text == "w0 w1 "
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"


async def test_request_beyond_its_timeout_is_504(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(
            model="scripted",
            max_tokens=5,
            messages=[{"role": "user", "content": json.dumps({"fail": "hang"})}],
            extra_headers={"x-request-timeout": "0.3"},
        )
    assert (caught.value.status_code, caught.value.type) == (504, "timeout_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_stops_if_the_client_leaves(stack: Stack, stream: bool) -> None:
    script = {"tokens": 4000, "step_seconds": 0.01}
    body = {
        "model": "scripted",
        "max_tokens": 4000,
        "messages": [{"role": "user", "content": json.dumps(script)}],
        "stream": stream,
    }

    async def ask() -> None:
        async with stack.http.post("/v1/messages", json=body) as response:
            await response.read()

    task = asyncio.create_task(ask())
    await eventually(lambda: stack.engine.health().running)
    task.cancel()
    await eventually(lambda: not stack.engine.health().running)
    assert not stack.edge.exchanges
