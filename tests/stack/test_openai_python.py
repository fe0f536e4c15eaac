"""The official Python SDK against the default models: its helpers, types, headers and errors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.stack.conftest import Up

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CHAT: dict[str, Any] = {"model": "gpt-4", "messages": QUESTION, "temperature": 0, "max_tokens": 12}


class Pet(BaseModel):
    """A schema so small that the grammar ends the output within the token limit."""

    model_config = ConfigDict(title="A pet")

    kind: Literal["cat", "dog"] = Field(description="what it is")
    legs: int = Field(ge=0, le=9)
    tame: bool


class Household(BaseModel):
    """A schema that refers to another schema."""

    pets: list[Pet] = Field(min_length=1, max_length=2)


class Weather(BaseModel):
    """The arguments of a tool."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)


WEATHER = openai.pydantic_function_tool(Weather, name="get_weather", description="The forecast.")
TIME = {"type": "function", "function": {"name": "get_time", "description": "The time of day."}}


@pytest.fixture
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        yield client


def test_chat_response_has_text_usage_and_request_id(client: OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT)
    assert answer._request_id
    assert answer.model == "gpt-4"
    [choice] = answer.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_async_client_runs_requests_concurrently(up: Up) -> None:
    async with AsyncOpenAI(
        base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=100
    ) as client:

        async def streamed() -> str:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        plain, text, models = await asyncio.gather(
            client.chat.completions.create(**CHAT), streamed(), client.models.list()
        )
        assert plain.choices[0].message.content == text
        assert "Paris" in text
        assert models.data
        async with client.chat.completions.stream(**CHAT | {"max_tokens": 64}) as events:
            final = await events.get_final_completion()
        assert "Paris" in (final.choices[0].message.content or "")
        vectors = await client.embeddings.create(model="text-embedding-ada-002", input="a cat")
        assert len(vectors.data[0].embedding) == 384


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_parse_returns_an_object_of_the_schema(client: OpenAI, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model="gpt-4",
        messages=[{"role": "user", "content": "Describe two pets as JSON."}],
        response_format=Household,
        temperature=temperature,
        seed=7,
        max_tokens=200,
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Household)
    assert message.parsed == Household.model_validate_json(message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_stream_helper_emits_content_and_the_parsed_object(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="gpt-4",
        messages=[{"role": "user", "content": "Describe a pet as JSON."}],
        response_format=Pet,
        temperature=0,
        max_tokens=100,
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    assert kinds.count("content.delta") > 3
    assert kinds.count("content.done") == 1
    [done] = [event for event in events if event.type == "content.done"]
    pieces = [event.delta for event in events if event.type == "content.delta"]
    assert "".join(pieces) == done.content == final.choices[0].message.content
    assert isinstance(done.parsed, Pet)
    assert final.choices[0].message.parsed == done.parsed
    assert final.choices[0].message.role == "assistant"
    assert final.usage is not None
    assert final.usage.completion_tokens >= len(pieces)


def test_stream_helper_assembles_a_tool_call(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="gpt-4",
        messages=[{"role": "user", "content": "What will the weather be in Rome?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=100,
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, Weather)
    [call] = final.choices[0].message.tool_calls or []
    assert call.id
    assert call.function.name == "get_weather"
    assert call.function.parsed_arguments == done.parsed_arguments


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_required_tool_is_called(client: OpenAI, choice: Any, stream: bool) -> None:
    request: dict[str, Any] = {
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "What will the weather be in Rome?"}],
        "tools": [WEATHER] if choice == "required" else [TIME, WEATHER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 200,
    }
    if stream:
        calls, arguments, finish = [], "", None
        for chunk in client.chat.completions.create(**request, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.index == 0
                calls += [call] if call.id else []
                arguments += call.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
    else:
        [answer] = client.chat.completions.create(**request).choices
        calls = answer.message.tool_calls or []
        arguments = calls[0].function.arguments
        finish = answer.finish_reason
        assert answer.message.content is None
    [call] = calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    Weather.model_validate_json(arguments)
    assert finish in ("tool_calls", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_response_with_optional_tools_is_text_or_a_valid_call(client: OpenAI, stream: bool) -> None:
    """Both are correct: this small model rarely calls a tool that is not required."""
    request: dict[str, Any] = {
        **CHAT,
        "max_tokens": 40,
        "tools": [WEATHER, TIME],
        "tool_choice": "auto",
    }
    if stream:
        with client.chat.completions.stream(**request) as events:
            try:
                answer = events.get_final_completion()
            except openai.LengthFinishReasonError as cut:
                answer = cut.completion
    else:
        answer = client.chat.completions.create(**request)
    [choice] = answer.choices
    for call in choice.message.tool_calls or []:
        json.loads(call.function.arguments)
    assert choice.message.content or choice.message.tool_calls
    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)


def test_tool_result_becomes_part_of_the_prompt(client: OpenAI) -> None:
    """The response's own message is sent back as history."""
    messages: list[Any] = [{"role": "user", "content": "What will the weather be in Rome?"}]
    tools: dict[str, Any] = {"model": "gpt-4", "tools": [WEATHER], "temperature": 0}
    called = client.chat.completions.create(
        messages=messages, tool_choice="required", max_tokens=200, **tools
    )
    [call] = called.choices[0].message.tool_calls or []
    history = [
        *messages,
        called.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "sunny"}'},
    ]
    after, before = (
        client.chat.completions.create(messages=said, tool_choice="none", max_tokens=20, **tools)
        for said in (history, messages)
    )
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None
    assert after.usage is not None
    assert before.usage is not None
    assert after.usage.prompt_tokens > before.usage.prompt_tokens + 20


def test_streamed_choices_equal_the_plain_choices(client: OpenAI) -> None:
    request: dict[str, Any] = {**CHAT, "n": 2, "temperature": 0}
    plain = client.chat.completions.create(**request)
    texts, finishes, usage = {}, {}, None
    for chunk in client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finishes[choice.index] = choice.finish_reason
    assert list(texts) == [0, 1]
    assert texts == {choice.index: choice.message.content for choice in plain.choices}
    assert finishes == {choice.index: choice.finish_reason for choice in plain.choices}
    assert usage == plain.usage


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_join_to_the_text_and_are_sorted(client: OpenAI, stream: bool) -> None:
    request: dict[str, Any] = {**CHAT, "logprobs": True, "top_logprobs": 3}
    if stream:
        text, entries = "", []
        for chunk in client.chat.completions.create(**request, stream=True):
            [choice] = chunk.choices
            text += choice.delta.content or ""
            entries += (choice.logprobs and choice.logprobs.content) or []
    else:
        [answer] = client.chat.completions.create(**request).choices
        text = answer.message.content or ""
        assert answer.logprobs is not None
        entries = answer.logprobs.content or []
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == text
    for entry in entries:
        assert entry.logprob <= 0
        assert math.isfinite(entry.logprob)
        top = [other.logprob for other in entry.top_logprobs]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert entry.logprob == top[0], "greedy"


def test_embeddings_are_equal_as_base64_and_as_floats(client: OpenAI) -> None:
    inputs = ["a cat", "an unpaid invoice"]
    by_default = client.embeddings.create(model="text-embedding-ada-002", input=inputs)
    as_floats = client.embeddings.create(
        model="text-embedding-ada-002", input=inputs, encoding_format="float"
    )
    assert [row.index for row in by_default.data] == [0, 1]
    for left, right in zip(by_default.data, as_floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert by_default.usage == as_floats.usage


def test_completion_echoes_and_scores_the_prompt(client: OpenAI) -> None:
    prompt = "The capital of France is"
    answer = client.completions.create(
        model="text-davinci-003", prompt=prompt, echo=True, logprobs=2, max_tokens=3, temperature=0
    )
    [choice] = answer.choices
    assert choice.text.startswith(prompt)
    scored = choice.logprobs
    assert scored is not None
    assert "".join(scored.tokens or []) == choice.text
    assert scored.token_logprobs is not None
    assert scored.token_logprobs[0] is None
    assert all(value <= 0 for value in scored.token_logprobs[1:])
    assert scored.text_offset is not None
    assert scored.text_offset[0] == 0
    assert scored.text_offset == sorted(scored.text_offset)
    assert all(len(top) in (2, 3) for top in (scored.top_logprobs or [])[1:])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_completion_choices_are_numbered_by_prompt(client: OpenAI, stream: bool) -> None:
    request: dict[str, Any] = {
        "model": "text-davinci-003",
        "prompt": ["The capital of France is", "One, two, three, four,"],
        "n": 2,
        "temperature": 0,
        "max_tokens": 5,
    }
    texts: dict[int, str] = {}
    if stream:
        for chunk in client.completions.create(**request, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
    else:
        texts = {each.index: each.text for each in client.completions.create(**request).choices}
    assert sorted(texts) == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert "Paris" in texts[0]
    assert "five" in texts[2]


def test_completions_accept_token_ids(client: OpenAI) -> None:
    answer = client.completions.create(
        model="text-davinci-003", prompt=[[504, 3575, 282], [504]], max_tokens=2, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2", "gpt-4"} <= set(names)
    for name in names:
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")
        assert model.created > 1_600_000_000


def test_raw_and_streamed_responses_have_their_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        **CHAT, extra_headers={"x-request-id": "from-the-caller"}
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.request_id == raw.headers["x-request-id"] == "from-the-caller"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse()._request_id == "from-the-caller"
    with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.request_id
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_errors_raise_the_sdks_error_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**CHAT | {"model": "nope"})
    assert (missing.value.code, missing.value.type) == ("model_not_found", "invalid_request_error")
    assert missing.value.request_id
    with pytest.raises(openai.NotFoundError) as unlisted:
        client.models.retrieve("nope")
    assert (unlisted.value.code, unlisted.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(**CHAT | {"temperature": 3})
    assert (hot.value.code, hot.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(**CHAT, extra_body={"nope": 1}, stream=True)
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "nope")
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.embeddings.create(model="text-embedding-ada-002", input="a cat", dimensions=8)
    assert unsupported.value.param == "dimensions"


def test_parse_raises_when_max_tokens_cuts_the_output(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        client.chat.completions.parse(**CHAT | {"max_tokens": 2}, response_format=Household)
    assert cut.value.completion.usage is not None
    assert cut.value.completion.usage.completion_tokens == 2
