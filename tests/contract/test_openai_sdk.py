"""The official SDK against the stack: the shapes, streams and errors that its users see."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conftest import Stack

MESSAGES = [{"role": "user", "content": "hello there"}]


async def test_chat_answers_in_openais_shape(stack: Stack) -> None:
    answer = await stack.openai.chat.completions.create(
        model="gpt-4", messages=MESSAGES, max_tokens=3
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "gpt-4"
    assert answer.choices[0].message.content == "w0 w1 w2 "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)
    assert answer.usage.total_tokens == 5
    assert answer.system_fingerprint == "fp_scripted"


async def test_streamed_chat_says_the_same(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="gpt-4", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *spoken, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in spoken)
    assert text == "".join(f"w{n} " for n in range(16))
    assert [chunk.choices[0].delta.role for chunk in spoken].count("assistant") == 1
    assert spoken[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 16
    assert len({chunk.id for chunk in chunks}) == 1


async def test_choices_are_streamed_apart(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="scripted", messages=MESSAGES, n=3, max_tokens=4, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == dict.fromkeys(range(3), "w0 w1 w2 w3 ")


async def test_named_tool_streams_its_arguments(stack: Stack) -> None:
    script = json.dumps({"text": '{"city": "Rome"}'})
    stream = await stack.openai.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": script}],
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": {}}}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        stream=True,
    )
    names, arguments, finish = [], "", None
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            assert call.function is not None
            arguments += call.function.arguments or ""
            names += [call.function.name] if call.function.name else []
        finish = chunk.choices[0].finish_reason or finish
    assert names == ["get_weather"]
    assert json.loads(arguments) == {"city": "Rome"}
    assert finish in ("tool_calls", "stop")


async def test_completions_number_their_choices_by_prompt(stack: Stack) -> None:
    answer = await stack.openai.completions.create(
        model="scripted", prompt=["one", '{"text": "two three"}'], n=2, max_tokens=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["w0 w1 "] * 2 + ["two three"] * 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


async def test_completions_stream(stack: Stack) -> None:
    stream = await stack.openai.completions.create(
        model="scripted", prompt=["one", "two"], max_tokens=3, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "w0 w1 w2 ", 1: "w0 w1 w2 "}


async def test_embeddings_are_equal_in_both_encodings(stack: Stack) -> None:
    create = stack.openai.embeddings.create
    by_default = await create(model="scripted-embedding", input=["one", "two three"])
    as_floats = await create(
        model="scripted-embedding", input=["one", "two three"], encoding_format="float"
    )
    assert [row.index for row in by_default.data] == [0, 1]
    for left, right in zip(by_default.data, as_floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-7)
    assert by_default.usage.prompt_tokens == 3


async def test_embeddings_take_tokens(stack: Stack) -> None:
    answer = await stack.openai.embeddings.create(
        model="scripted-embedding", input=[[1, 2, 3], [4]]
    )
    assert answer.usage.prompt_tokens == 4


async def test_models_are_listed_and_retrieved_by_every_name(stack: Stack) -> None:
    listed = [model.id async for model in stack.openai.models.list()]
    names = ["scripted", "gpt-4", "tiny", "org/name", "scripted-embedding", "ada"]
    assert sorted(listed) == sorted(names)
    for name in names:
        assert (await stack.openai.models.retrieve(name)).id == name


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_is_a_404(stack: Stack, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await stack.openai.chat.completions.create(model="nope", messages=MESSAGES, stream=stream)
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
async def test_context_overflow_is_a_400_even_when_streaming(stack: Stack, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x " * 9}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "8 tokens" in caught.value.message


async def test_completion_overflow_has_no_code(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.openai.completions.create(model="tiny", prompt="x", max_tokens=8)
    assert (caught.value.code, caught.value.param) == (None, None)
    assert "(1 in your prompt; 8 for the completion)" in caught.value.message


async def test_embedding_overflow_is_refused_not_cut(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 6"):
        await stack.openai.embeddings.create(model="ada", input="x " * 7)


async def test_a_failure_before_the_first_token_is_a_true_status(stack: Stack) -> None:
    for fail, error in (("start", openai.InternalServerError), ("refuse", openai.BadRequestError)):
        with pytest.raises(error) as caught:
            await stack.openai.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": json.dumps({"fail": fail})}],
                stream=True,
            )
        assert "canary" not in str(caught.value)


async def test_a_failure_in_mid_stream_is_an_error_event(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": json.dumps({"fail": "mid"})}],
        stream=True,
    )
    heard = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            heard += chunk.choices[0].delta.content or ""
    assert heard == "w0 w1 "
    assert "canary" not in str(caught.value)


async def test_a_slow_request_times_out_as_504(stack: Stack) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await stack.openai.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": json.dumps({"fail": "hang"})}],
            extra_headers={"x-request-timeout": "0.3"},
        )
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert stack.engine.health().running == 0


class Answer(BaseModel):
    """What the model is to say."""

    reply: str


# The SDK serializes what its own helpers made, and warns of it.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_what_the_helpers_add_to_messages_may_come_back(stack: Stack) -> None:
    question: Any = [{"role": "user", "content": json.dumps({"text": '{"reply":"yes"}'})}]
    chats = stack.openai.chat.completions
    parsed = await chats.parse(model="scripted", messages=question, response_format=Answer)
    async with chats.stream(model="scripted", messages=question) as stream:
        streamed = await stream.get_final_completion()
    assert parsed.choices[0].message.parsed == Answer(reply="yes")
    for message in (parsed.choices[0].message, streamed.choices[0].message):
        for history in (message, message.model_dump()):
            more: Any = [*question, history, {"role": "user", "content": "and?"}]
            assert (await chats.create(model="scripted", messages=more)).choices


async def test_calls_that_the_helpers_have_read_may_come_back(stack: Stack) -> None:
    question: Any = [{"role": "user", "content": json.dumps({"text": '{"reply":"sunny"}'})}]
    tool = openai.pydantic_function_tool(Answer)
    parsed = await stack.openai.chat.completions.parse(
        model="scripted",
        messages=question,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "Answer"}},
    )
    message = parsed.choices[0].message
    assert message.tool_calls
    assert message.tool_calls[0].function.parsed_arguments == Answer(reply="sunny")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
    more: Any = [*question, message, result]
    assert (await stack.openai.chat.completions.create(model="scripted", messages=more)).choices


@pytest.mark.parametrize("member", ["guided_regex", "guided_grammar"])
async def test_a_refusal_of_the_service_names_what_was_sent(stack: Stack, member: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await stack.openai.completions.create(
            model="scripted", prompt="x", extra_body={member: "a+"}
        )
    assert raised.value.param == member
    assert f"'{member}'" in raised.value.message
