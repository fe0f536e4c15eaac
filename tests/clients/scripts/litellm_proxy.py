"""LiteLLM's proxy before Isthmus, with a wildcard model; the OpenAI SDK talks to the proxy."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

URL = os.environ["ISTHMUS_URL"] + "/v1"
KEY = "sk-only-for-this-test"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WISH = [{"role": "user", "content": "Use get_weather with city = Rome."}]
ANSWER = "The capital of France is Paris."
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a proxy that passes every model on to Isthmus."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("proxy")
    parameters = {"model": "openai/*", "api_base": URL, "api_key": "none"}
    configuration = {"model_list": [{"model_name": "*", "litellm_params": parameters}]}
    # JSON is also YAML.
    (folder / "config.yaml").write_text(json.dumps(configuration))
    command = [Path(sys.executable).with_name("litellm"), "--config", folder / "config.yaml"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options],
            stdout=log,
            stderr=log,
            env=os.environ | {"LITELLM_MASTER_KEY": KEY},
        )
    try:
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness"):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()[-4000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def post(proxy: str, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that no SDK has completed."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(f"{proxy}/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@pytest.fixture
def client(proxy: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=proxy, api_key=KEY, max_retries=0) as client:
        yield client


def test_plain_answer_has_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.completion_tokens == 6


def test_plain_completion_has_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="France")
    assert answer.choices[0].text == ANSWER


def test_plain_error_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, temperature=9)


def test_plain_conversation_goes_on_with_the_answer_itself(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    messages = [*QUESTION, first.choices[0].message.model_dump(), *QUESTION]
    second = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    assert second.choices[0].message.content == ANSWER


def test_plain_answer_to_a_request_with_nulls(proxy: str) -> None:
    nulls = dict.fromkeys(("tools", "tool_choice", "stop", "response_format", "logit_bias", "user"))
    answer = post(proxy, "chat/completions", model="gpt-4o-mini", messages=QUESTION, **nulls)
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_plain_answer_to_a_request_with_empty_lists(proxy: str) -> None:
    empty = {"tools": [], "stop": [], "logit_bias": {}, "metadata": {}}
    answer = post(proxy, "chat/completions", model="gpt-4o-mini", messages=QUESTION, **empty)
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_streamed_answer_is_the_plain_text_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o-mini",
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert chunks[-1].usage.completion_tokens == 6


def test_tools_make_a_round_trip(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(model="gpt-4o-mini", messages=WISH, tools=[WEATHER])
    message = asked.choices[0].message
    [call] = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=[*WISH, message.model_dump(), result], tools=[WEATHER]
    )
    assert answer.choices[0].message.content == "The tools returned: sunny"


def test_tools_are_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="gpt-4o-mini", messages=WISH, tools=[WEATHER], tool_choice="required"
    ) as stream:
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}


def test_structured_answer_of_a_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "city = Rome, inhabitants = 42"}],
        response_format=City,
    )
    assert answer.choices[0].message.parsed == City(city="Rome", inhabitants=42)


@pytest.mark.parametrize("encoding", ["default", "float", "base64"])
def test_embeddings_have_one_vector_an_input(client: openai.OpenAI, encoding: str) -> None:
    options = {} if encoding == "default" else {"encoding_format": encoding}
    answer = client.embeddings.create(
        model="text-embedding-3-small", input=["a cat", "a dog"], **options
    )
    assert len(answer.data) == 2


@pytest.mark.parametrize("members", [{}, {"encoding_format": None}])
def test_embeddings_of_a_bare_request(proxy: str, members: dict[str, Any]) -> None:
    answer = post(proxy, "embeddings", model="text-embedding-3-small", input=["a"], **members)
    assert len(answer["data"]) == 1


def test_images_are_png(client: openai.OpenAI) -> None:
    # A dall-e name answers with a URL unless the request says otherwise; a gpt-image name cannot.
    for model, options in (("dall-e-3", {"response_format": "b64_json"}), ("gpt-image-1", {})):
        answer = client.images.generate(model=model, prompt="a cat", size="1024x1024", **options)
        assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")


def test_vision_takes_a_picture(client: openai.OpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content == "I see 1 of image/png."
