"""Requests of three existing platforms, and every feature in which they differ from OpenAI.

The default configuration has platform A's model names; docs/examples/platform-names.toml has those
of B and C. The prefix of a test, as in plata01, is the number of the platform's requirement.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from launch.config import load
from tests.stack.conftest import EXAMPLE, ROOT, Up

GOLDEN = ROOT / "tests" / "golden" / "platforms"
CHAT_A = {"gpt-4": 8192, "gpt-4-32k": 32768, "gpt-3.5-turbo": 4096}
CHAT_A |= {"claude-2": 100_000, "claude-instant-1": 100_000}
CHAT_B = "cotomi-fast-v2.0"
CHAT_C = "meta-llama/Meta-Llama-3-70B-Instruct"
EMBEDDING_B = "multilingual-e5-large"
EMBEDDING_C = "intfloat/e5-large-v2"
IMAGE_C = "stabilityai/stable-diffusion-xl-base-1.0"


@dataclass(frozen=True)
class Platform:
    """A stack as a platform's clients use it: base URL and API key, which may be empty."""

    url: str
    key: str

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=110)

    def post(self, path: str, **body: Any) -> Any:
        """Returns the JSON response of a request that must succeed."""
        response = self.call("POST", f"/v1/{path}", body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, **body: Any) -> Any:
        """Returns the error of a request that must be a 400."""
        response = self.call("POST", f"/v1/{path}", body)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    def chat(self, model: str, text: str = "Say hello.", **body: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.post(
            "chat/completions",
            **({"model": model, "messages": messages, "max_tokens": 8, "temperature": 0} | body),
        )


@pytest.fixture
def a(up: Up) -> Platform:
    return Platform(up.url, "none")


@pytest.fixture
def b(example_up: Up, example_key: tuple[Path, str]) -> Platform:
    """The example configuration behind keys, which platform B requires."""
    return Platform(example_up.url, example_key[1])


@pytest.fixture
def c(b: Platform) -> Platform:
    return b


def golden(platform: str, name: str) -> Any:
    return json.loads((GOLDEN / platform / f"{name}.json").read_text())


SAMPLES = [
    pytest.param(
        path.parent.name,
        path.stem,
        id=f"{path.parent.name}-{path.stem}",
    )
    for path in sorted(GOLDEN.glob("*/*.json"))
]


def check_shape(sample: Any, answer: Any, place: str = "answer") -> None:
    """Asserts that the response has every property of the sample, with the sample's type."""
    if isinstance(sample, dict):
        assert isinstance(answer, dict), place
        for name, value in sample.items():
            if name == "tool_calls":  # the sample has a meaningless placeholder: PLATC03
                continue
            assert name in answer, f"{place}.{name}"
            check_shape(value, answer[name], f"{place}.{name}")
    elif isinstance(sample, list):
        assert isinstance(answer, list), place
        assert answer, place
        for index, item in enumerate(answer if sample else []):
            check_shape(sample[0], item, f"{place}[{index}]")
    elif isinstance(sample, int):
        assert isinstance(answer, int | float), place
        assert not isinstance(answer, bool), place
    else:
        assert type(answer) is type(sample), place


def test_there_are_eleven_samples() -> None:
    assert len(SAMPLES) == 11


def test_example_configuration_has_the_names_and_their_limits() -> None:
    aliases = {alias.name: alias for model in load(EXAMPLE) for alias in model.aliases}
    assert set(aliases) >= {CHAT_B, CHAT_C, EMBEDDING_B, EMBEDDING_C}
    assert aliases[EMBEDDING_B].context_length == 512


@pytest.mark.parametrize(("platform", "name"), SAMPLES)
def test_sample_gets_a_response_of_the_documented_shape(
    request: pytest.FixtureRequest, platform: str, name: str
) -> None:
    sample = golden(platform, name)
    stack: Platform = request.getfixturevalue(platform)
    response = stack.call(sample["method"], sample["path"], sample.get("request"))
    assert response.status_code == 200, response.text
    answer = response.json()
    check_shape(sample.get("answer", {}), answer)
    if "request" in sample and "model" in answer:
        assert answer["model"] == sample["request"]["model"]


# Platform A


def test_plata01_four_endpoints_work(a: Platform) -> None:
    assert a.chat("gpt-4")["choices"]
    assert a.post("completions", model="gpt-4", prompt="Once", max_tokens=2)["choices"]
    assert a.post("embeddings", model="text-embedding-ada-002", input="Once")["data"]
    assert a.call("GET", "/v1/models").json()["data"]


def test_plata02_chat_example_gets_a_valid_response(a: Platform) -> None:
    answer = a.post("chat/completions", **golden("a", "chat")["request"])
    usage = answer["usage"]
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 150


@pytest.mark.parametrize("name", CHAT_A)
def test_plata03_plata04_response_has_the_requested_alias(a: Platform, name: str) -> None:
    assert a.chat(name)["model"] == name


def test_plata05_completion_response_has_the_requested_model(a: Platform) -> None:
    answer = a.post("completions", model="text-davinci-003", prompt="Once", max_tokens=4)
    assert (answer["object"], answer["model"]) == ("text_completion", "text-davinci-003")


def test_plata06_embedding_example_gets_one_vector(a: Platform) -> None:
    answer = a.post("embeddings", **golden("a", "embedding")["request"])
    assert answer["model"] == "text-embedding-ada-002"
    assert [len(row["embedding"]) for row in answer["data"]] == [384]


def test_plata07_all_names_are_listed_and_retrieved(a: Platform) -> None:
    listed = {model["id"] for model in a.call("GET", "/v1/models").json()["data"]}
    names = {*CHAT_A, "text-davinci-003", "text-embedding-ada-002"}
    assert names <= listed
    for name in names:
        assert a.call("GET", f"/v1/models/{name}").json()["id"] == name


@pytest.mark.parametrize(("name", "row"), CHAT_A.items())
def test_plata08_prompt_beyond_the_context_length_is_refused(
    a: Platform, name: str, row: int
) -> None:
    messages = [{"role": "user", "content": "word " * row}]
    error = a.refused("chat/completions", model=name, messages=messages)
    assert error["code"] == "context_length_exceeded"
    limit = re.search(r"maximum context length is (\d+) tokens", error["message"])
    assert limit
    assert int(limit[1]) <= row


def test_plata09_gpt_35_has_4096_tokens(a: Platform) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "gpt-3.5-turbo", "messages": messages, "max_tokens": 4097}
    assert "4096 tokens" in a.refused("chat/completions", **body)["message"]


def test_plata10_davinci_has_4097_tokens(a: Platform) -> None:
    body = {"model": "text-davinci-003", "prompt": "Hello", "max_tokens": 4097}
    assert "4097 tokens" in a.refused("completions", **body)["message"]


def test_plata11_embedding_input_beyond_the_context_length_is_refused(a: Platform) -> None:
    body = {"model": "text-embedding-ada-002", "input": "word " * 8300}
    limit = re.search(r"(\d+) tokens, however", a.refused("embeddings", **body)["message"])
    assert limit
    assert int(limit[1]) <= 8191


def test_plata12_official_sdk_runs_the_example(a: Platform) -> None:
    client = openai.OpenAI(base_url=f"{a.url}/v1", api_key=a.key, max_retries=0, timeout=110)
    answer = client.chat.completions.create(**golden("a", "chat_clients")["request"])
    assert answer.choices[0].message.content


def test_plata13_temperature_0_to_2_and_streams_are_accepted(a: Platform) -> None:
    for temperature in (0, 2):
        assert a.chat("gpt-4", temperature=temperature)["choices"]
    streamed = golden("a", "chat")["request"] | {"stream": True, "max_tokens": 8}
    response = a.call("POST", "/v1/chat/completions", streamed)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


# Platform B


@pytest.mark.parametrize("name", ["chat", "embedding"])
def test_platb01_request_without_a_valid_key_is_401(b: Platform, name: str) -> None:
    sample = golden("b", name)
    for key in ("", "wrong"):
        stranger = Platform(b.url, key)
        assert stranger.call("POST", sample["path"], sample["request"]).status_code == 401


def test_platb02_messages_as_json_text_equal_messages_as_array(b: Platform) -> None:
    sample = golden("b", "chat")["request"] | {"temperature": 0, "max_tokens": 12}
    assert isinstance(sample["messages"], str)
    as_text = b.post("chat/completions", **sample)
    as_array = b.post("chat/completions", **sample | {"messages": json.loads(sample["messages"])})
    assert as_text["usage"] == as_array["usage"]
    assert as_text["choices"] == as_array["choices"]


def test_platb03_platb04_null_is_accepted_for_optional_chat_parameters(b: Platform) -> None:
    sample = golden("b", "chat")["request"]
    nulls = {name for name, value in sample.items() if value is None}
    assert nulls == {"logit_bias", "max_tokens", "stop", "user"}
    for name in nulls:
        b.chat(CHAT_B, **{"max_tokens": 2, "stop": ["."]} | {name: None})


def test_platb05_stream_ends_with_done(b: Platform) -> None:
    body = golden("b", "chat")["request"] | {"stream": True, "max_tokens": 8}
    response = b.call("POST", "/v1/chat/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("messages", ["", "[]", "{}", "[5]", '[{"role": "user"'])
def test_platb06_text_that_is_not_a_list_of_messages_is_refused(b: Platform, messages: str) -> None:
    error = b.refused("chat/completions", model=CHAT_B, messages=messages)
    assert error["param"].startswith("messages")


def test_platb07_plain_text_is_one_user_message(b: Platform) -> None:
    plain = b.chat(CHAT_B, messages="Hello there")
    assert plain["choices"] == b.chat(CHAT_B, "Hello there")["choices"]


def test_platb08_up_to_four_stop_strings_are_accepted(b: Platform) -> None:
    for stop in (None, "\n", ["\n"], ["\n", "a", "b", "c"]):
        b.chat(CHAT_B, stop=stop)
    messages = [{"role": "user", "content": "Hello"}]
    error = b.refused("chat/completions", model=CHAT_B, messages=messages, stop=list("abcde"))
    assert error["param"] == "stop"


def test_platb09_response_has_a_system_fingerprint(b: Platform) -> None:
    assert b.chat(CHAT_B)["system_fingerprint"]


def test_platb10_function_call_none_calls_no_function(b: Platform) -> None:
    functions = [{"name": "f", "parameters": {"type": "object", "properties": {}}}]
    body = {
        "model": CHAT_B,
        "messages": [{"role": "user", "content": "Hello"}],
        "functions": functions,
        "function_call": "none",
        "max_tokens": 8,
    }
    response = b.call("POST", "/v1/chat/completions", body)
    assert response.status_code in (200, 400)
    if response.status_code == 200:
        assert not response.json()["choices"][0]["message"].get("function_call")


@pytest.mark.parametrize(
    ("form", "vectors"),
    [("a text", 1), (["two", "texts"], 2), ([7592, 2088], 1), ([[7592], [2088, 102]], 2)],
    ids=str,
)
def test_platb11_every_input_form_is_embedded(b: Platform, form: Any, vectors: int) -> None:
    answer = b.post("embeddings", model=EMBEDDING_B, input=form)
    assert [row["index"] for row in answer["data"]] == list(range(vectors))


def test_platb12_float_is_the_default_and_equals_base64(b: Platform) -> None:
    body = {"model": EMBEDDING_B, "input": "equal"}
    by_default = b.post("embeddings", **body)["data"][0]["embedding"]
    numbers = b.post("embeddings", **body, encoding_format="float")["data"][0]["embedding"]
    packed = b.post("embeddings", **body, encoding_format="base64")["data"][0]["embedding"]
    assert by_default == numbers
    assert np.array_equal(
        np.frombuffer(base64.b64decode(packed), dtype="<f4"), np.array(numbers, dtype="<f4")
    )


def test_platb13_embedding_context_length_is_at_most_512(b: Platform) -> None:
    assert b.post("embeddings", model=EMBEDDING_B, input="word " * 100)["data"]
    error = b.refused("embeddings", model=EMBEDDING_B, input="word " * 600)
    limit = re.search(r"(\d+) tokens, however you requested 602 tokens", error["message"])
    assert limit
    assert int(limit[1]) <= 512


@pytest.mark.parametrize("form", ["", ["a", ""], [], ["a"] * 2049], ids=lambda f: str(f)[:9])
def test_platb14_empty_and_too_long_inputs_are_refused(b: Platform, form: Any) -> None:
    assert b.refused("embeddings", model=EMBEDDING_B, input=form)


def test_platb15_embedding_response_has_model_usage_and_vector(b: Platform) -> None:
    answer = b.post("embeddings", **golden("b", "embedding")["request"])
    assert (answer["object"], answer["model"]) == ("list", EMBEDDING_B)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert len(answer["data"]) == 1


def test_platb_names_are_listed(b: Platform) -> None:
    listed = {model["id"] for model in b.call("GET", "/v1/models").json()["data"]}
    assert {CHAT_B, EMBEDDING_B, CHAT_C, EMBEDDING_C} <= listed


# Platform C


def test_platc01_platc03_chat_example_stops_at_the_line_break(c: Platform) -> None:
    answer = c.post("chat/completions", **golden("c", "chat")["request"])
    (choice,) = answer["choices"]
    assert "\n" not in choice["message"]["content"]
    calls = choice["message"].get("tool_calls")
    assert calls is None or all(isinstance(call, dict) for call in calls)


def test_platc02_completion_example_stops_at_the_line_break(c: Platform) -> None:
    answer = c.post("completions", **golden("c", "completion")["request"])
    assert answer["object"] == "text_completion"
    assert "\n" not in answer["choices"][0]["text"]


def test_platc04_logit_bias_forces_one_token(c: Platform) -> None:
    free = c.chat(CHAT_C)["choices"][0]["message"]["content"]
    biased = c.chat(CHAT_C, logit_bias={"1000": 100})["choices"][0]["message"]["content"]
    assert biased != free
    assert len(set(biased.split())) == 1, "the same token every time"


def image_size(c: Platform, **body: Any) -> tuple[int, int]:
    """Width and height of the image of a request, from its PNG header."""
    answer = c.post("images/generations", model=IMAGE_C, prompt="a red heart", **body)
    (entry,) = answer["data"]
    data = base64.b64decode(entry["b64_json"], validate=True)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_platc05_size_may_be_written_with_a_star(c: Platform) -> None:
    assert image_size(c, size="256*128") == image_size(c, size="256x128") == (256, 128)


def test_platc06_image_url_is_null_with_base64_data(c: Platform) -> None:
    (entry,) = c.post("images/generations", **golden("c", "image")["request"])["data"]
    assert entry["url"] is None
    assert entry["b64_json"]


def test_platc07_image_is_base64_by_default_and_url_works_or_is_refused(c: Platform) -> None:
    body = {"model": IMAGE_C, "prompt": "a red heart", "size": "64*64"}
    assert c.post("images/generations", **body)["data"][0]["b64_json"]
    response = c.call("POST", "/v1/images/generations", body | {"response_format": "url"})
    assert response.status_code in (200, 400)
    if response.status_code == 200:
        assert httpx.get(response.json()["data"][0]["url"], timeout=30).status_code == 200


def test_platc08_platc10_default_is_one_image_of_1024x1024(c: Platform) -> None:
    assert image_size(c) == (1024, 1024)


@pytest.mark.parametrize(
    "size", ["*", "64*", "*64", "64**64", "0*64", "-64*64", "64*64*64", "٦٤*64", "9999999*9999999"]
)
def test_platc09_malformed_star_size_is_refused(c: Platform, size: str) -> None:
    body = {"model": IMAGE_C, "prompt": "a red heart", "size": size}
    assert c.refused("images/generations", **body)["param"] == "size"


def test_platc11_image_model_is_listed(c: Platform) -> None:
    listed = {model["id"] for model in c.call("GET", "/v1/models").json()["data"]}
    assert IMAGE_C in listed


def test_platc12_embedding_example_gets_one_vector(c: Platform) -> None:
    answer = c.post("embeddings", **golden("c", "embedding")["request"])
    assert [len(row["embedding"]) for row in answer["data"]] == [384]


def test_platc13_created_is_now_in_seconds(c: Platform) -> None:
    for answer in (c.chat(CHAT_C), c.post("completions", model=CHAT_C, prompt="x", max_tokens=1)):
        assert isinstance(answer["created"], int)
        assert abs(answer["created"] - time.time()) < 300


def test_platc14_model_name_with_a_slash_is_found(c: Platform) -> None:
    assert c.chat(CHAT_C)["model"] == CHAT_C
    for path in (CHAT_C, CHAT_C.replace("/", "%2F")):
        assert c.call("GET", f"/v1/models/{path}").json()["id"] == CHAT_C


def test_platc_embeddings_without_a_model_use_the_only_embedding_model(c: Platform) -> None:
    assert c.post("embeddings", input=["The food"])["data"]
