"""The official Python SDK against the stack: response shapes, streams and errors."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conftest import Stack

MESSAGES = [{"role": "user", "content": "hello there"}]


async def test_chat_response_has_openais_shape(stack: Stack) -> None:
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


async def test_streamed_chat_sends_the_text_finish_and_usage(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="gpt-4", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *content_chunks, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in content_chunks)
    assert text == "".join(f"w{n} " for n in range(16))
    assert [chunk.choices[0].delta.role for chunk in content_chunks].count("assistant") == 1
    assert content_chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 16
    assert len({chunk.id for chunk in chunks}) == 1


async def test_streamed_choices_keep_their_own_text(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="scripted", messages=MESSAGES, n=3, max_tokens=4, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == dict.fromkeys(range(3), "w0 w1 w2 w3 ")


async def test_forced_tool_call_streams_its_arguments(stack: Stack) -> None:
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


async def test_completion_choices_are_numbered_by_prompt(stack: Stack) -> None:
    answer = await stack.openai.completions.create(
        model="scripted", prompt=["one", '{"text": "two three"}'], n=2, max_tokens=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["w0 w1 "] * 2 + ["two three"] * 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


async def test_streamed_completions_keep_the_text_of_each_prompt(stack: Stack) -> None:
    stream = await stack.openai.completions.create(
        model="scripted", prompt=["one", "two"], max_tokens=3, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "w0 w1 w2 ", 1: "w0 w1 w2 "}


async def test_embeddings_are_equal_as_base64_and_as_floats(stack: Stack) -> None:
    create = stack.openai.embeddings.create
    by_default = await create(model="scripted-embedding", input=["one", "two three"])
    as_floats = await create(
        model="scripted-embedding", input=["one", "two three"], encoding_format="float"
    )
    assert [row.index for row in by_default.data] == [0, 1]
    for left, right in zip(by_default.data, as_floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-7)
    assert by_default.usage.prompt_tokens == 3


async def test_embeddings_accept_token_ids(stack: Stack) -> None:
    answer = await stack.openai.embeddings.create(
        model="scripted-embedding", input=[[1, 2, 3], [4]]
    )
    assert answer.usage.prompt_tokens == 4


async def test_models_are_listed_and_retrieved_by_id_and_alias(stack: Stack) -> None:
    listed = [model.id async for model in stack.openai.models.list()]
    names = ["scripted", "gpt-4", "tiny", "org/name", "scripted-embedding", "ada"]
    assert sorted(listed) == sorted(names)
    for name in names:
        assert (await stack.openai.models.retrieve(name)).id == name


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_is_404(stack: Stack, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await stack.openai.chat.completions.create(model="nope", messages=MESSAGES, stream=stream)
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_beyond_the_context_length_is_400_even_when_streaming(
    stack: Stack, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.openai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x " * 9}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "8 tokens" in caught.value.message


async def test_completion_beyond_the_context_length_is_400_without_a_code(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stack.openai.completions.create(model="tiny", prompt="x", max_tokens=8)
    assert (caught.value.code, caught.value.param) == (None, None)
    assert "(1 in your prompt; 8 for the completion)" in caught.value.message


async def test_embedding_input_beyond_the_context_length_is_refused_not_cut(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 6"):
        await stack.openai.embeddings.create(model="ada", input="x " * 7)


async def test_failure_before_the_first_token_gets_an_error_status(stack: Stack) -> None:
    for fail, error in (("start", openai.InternalServerError), ("refuse", openai.BadRequestError)):
        with pytest.raises(error) as caught:
            await stack.openai.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": json.dumps({"fail": fail})}],
                stream=True,
            )
        assert "canary" not in str(caught.value)


async def test_failure_during_a_stream_is_an_error_event(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": json.dumps({"fail": "mid"})}],
        stream=True,
    )
    text = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "w0 w1 "
    assert "canary" not in str(caught.value)


async def test_request_beyond_its_timeout_is_504(stack: Stack) -> None:
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
    """The schema of the model's output."""

    reply: str


# The SDK warns when it serializes the objects that its own helpers made.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_messages_parsed_by_sdk_helpers_are_accepted_as_history(stack: Stack) -> None:
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


async def test_tool_calls_parsed_by_sdk_helpers_are_accepted_as_history(stack: Stack) -> None:
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


@pytest.mark.parametrize("parameter", ["guided_regex", "guided_grammar"])
async def test_error_of_the_service_names_the_parameter_that_was_sent(
    stack: Stack, parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await stack.openai.completions.create(
            model="scripted", prompt="x", extra_body={parameter: "a+"}
        )
    assert raised.value.param == parameter
    assert f"'{parameter}'" in raised.value.message
