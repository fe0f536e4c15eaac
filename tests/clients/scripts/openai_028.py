"""openai 0.28, the last SDK before the rewrite: functions instead of tools, dicts for answers."""

import asyncio
import base64
import json
import os
import struct

import openai
import pytest

openai.api_base = os.environ["ISTHMUS_URL"] + "/v1"
openai.api_key = "none"

QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = "The capital of France is Paris."
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
WISH = {"role": "user", "content": "Use get_weather with city = Rome."}


def test_plain_chat_has_text_and_usage() -> None:
    answer = openai.ChatCompletion.create(model="gpt-4", messages=[QUESTION], temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_plain_completion_has_text() -> None:
    answer = openai.Completion.create(model="gpt-4", prompt="The capital of France is")
    assert answer.choices[0].text == ANSWER


def test_plain_async_chat_has_text() -> None:
    answer = asyncio.run(openai.ChatCompletion.acreate(model="gpt-4", messages=[QUESTION]))
    assert answer.choices[0].message.content == ANSWER


def test_plain_answer_to_a_request_with_nulls() -> None:
    nulls = dict.fromkeys(
        ("functions", "function_call", "stop", "max_tokens", "logit_bias", "user")
    )
    answer = openai.ChatCompletion.create(model="gpt-4", messages=[QUESTION], **nulls)
    assert answer.choices[0].message.content == ANSWER


def test_plain_error_names_the_parameter() -> None:
    with pytest.raises(openai.InvalidRequestError) as caught:
        openai.ChatCompletion.create(model="gpt-4", messages=[QUESTION], temperature=9)
    assert caught.value.param == "temperature"


def test_plain_models_are_listed() -> None:
    assert "gpt-4" in [model.id for model in openai.Model.list().data]
    assert openai.Model.retrieve("gpt-4").id == "gpt-4"


def test_streamed_chat_is_the_plain_text() -> None:
    chunks = list(openai.ChatCompletion.create(model="gpt-4", messages=[QUESTION], stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.get("content", "") for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_streamed_completion_is_the_plain_text() -> None:
    chunks = openai.Completion.create(model="gpt-4", prompt="France", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


def test_tools_as_functions_make_a_round_trip() -> None:
    asked = openai.ChatCompletion.create(model="gpt-4", messages=[WISH], functions=[WEATHER])
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "function_call"
    assert message.function_call.name == "get_weather"
    assert json.loads(message.function_call.arguments) == {"city": "Rome"}
    result = {"role": "function", "name": "get_weather", "content": "sunny"}
    answer = openai.ChatCompletion.create(
        model="gpt-4", messages=[WISH, message, result], functions=[WEATHER]
    )
    assert answer.choices[0].message.content == "The tools returned: sunny"


def test_tools_as_functions_are_streamed() -> None:
    chunks = openai.ChatCompletion.create(
        model="gpt-4",
        messages=[WISH],
        functions=[WEATHER],
        function_call={"name": "get_weather"},
        stream=True,
    )
    arguments = ""
    for chunk in chunks:
        arguments += chunk.choices[0].delta.get("function_call", {}).get("arguments", "")
    assert json.loads(arguments) == {"city": "Rome"}


def test_structured_answer_is_json() -> None:
    answer = openai.ChatCompletion.create(
        model="gpt-4",
        messages=[{"role": "user", "content": "Answer in JSON."}],
        response_format={"type": "json_object"},
    )
    assert json.loads(answer.choices[0].message.content) == {"answer": ANSWER}


def test_embeddings_have_one_vector_an_input() -> None:
    answer = openai.Embedding.create(model="text-embedding-ada-002", input=["a cat", "a dog"])
    assert [len(row.embedding) for row in answer.data] == [8, 8]


def test_embeddings_in_base64_have_the_same_values() -> None:
    options = {"model": "text-embedding-ada-002", "input": "a cat"}
    plain = openai.Embedding.create(**options, encoding_format="float").data[0].embedding
    coded = openai.Embedding.create(**options, encoding_format="base64").data[0].embedding
    if isinstance(coded, str):
        coded = struct.unpack("<8f", base64.b64decode(coded))
    assert list(coded) == pytest.approx(plain)


def test_embeddings_without_an_encoding() -> None:
    answer = openai.Embedding.create(
        model="text-embedding-ada-002", input="a cat", encoding_format=None
    )
    assert len(answer.data[0].embedding) == 8


def test_images_are_png() -> None:
    answer = openai.Image.create(prompt="a cat", n=2, size="256x256", response_format="b64_json")
    for image in answer.data:
        assert base64.b64decode(image.b64_json).startswith(b"\x89PNG")


def test_images_come_as_urls() -> None:
    answer = openai.Image.create(prompt="a cat", size="256x256", response_format="url")
    assert answer.data[0].url.startswith(os.environ["ISTHMUS_URL"])
