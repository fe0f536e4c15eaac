"""Refused requests get OpenAI's status, code and param, and the message where a table has one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from edge.anthropic.request import parse_messages_request
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.errors import OpenAIError
from edge.openai.images.request import parse_image_request
from edge.openai.responses.request import parse_responses_request
from edge.openai.tokens.request import parse_detokenization, parse_tokenization
from tests.unit.openai.golden_files import GOLDEN

PARSERS: dict[str, Callable[..., object]] = {
    "chat": parse_chat_request,
    "responses": parse_responses_request,
    "completions": parse_completion_request,
    "embeddings": parse_embeddings_request,
    "images": parse_image_request,
    "messages": parse_messages_request,
    "tokenize": parse_tokenization,
    "detokenize": parse_detokenization,
}
VALID: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "hi"},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
    "images": {"model": "m", "prompt": "hi"},
    "messages": {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]},
    "tokenize": {"model": "m", "prompt": "hi"},
    "detokenize": {"model": "m", "tokens": [1]},
}
TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TOO_LARGE_IMAGE_PART = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{'A' * 14_000_000}"},
}

TOO_LARGE_INPUT_IMAGE = {
    "type": "input_image",
    "image_url": TOO_LARGE_IMAGE_PART["image_url"]["url"],
}
SAID = {"role": "user", "content": "x"}
FLAT_TOOL = {"type": "function", "name": "f"}
NAMESPACE = {
    "type": "namespace",
    "name": "n",
    "tools": [FLAT_TOOL | {"name": f"f{i}"} for i in range(128)],
}


def messages(content: object, times: int = 1) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}] * times}


TOO_LONG = "array_above_max_length"
# Requests too large for the JSON tables: endpoint, parameters, code, param.
LARGE: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("chat", {"tools": [TOOL] * 129}, TOO_LONG, "tools"),
    ("chat", messages("x", 2049), TOO_LONG, "messages"),
    ("chat", messages([{"type": "text", "text": ""}] * 1025), TOO_LONG, "messages[0].content"),
    (
        "chat",
        {"logit_bias": {str(i): 1 for i in range(1025)}},
        "object_above_max_properties",
        "logit_bias",
    ),
    ("chat", {"guided_json": {"a": "x" * 65536}}, "string_above_max_length", "guided_json"),
    (
        "chat",
        messages([TOO_LARGE_IMAGE_PART]),
        "string_above_max_length",
        "messages[0].content[0].image_url.url",
    ),
    ("responses", {"input": [SAID] * 2049}, TOO_LONG, "input"),
    ("responses", {"tools": [FLAT_TOOL] * 129}, TOO_LONG, "tools"),
    ("responses", {"tools": [NAMESPACE, NAMESPACE | {"name": "m"}]}, TOO_LONG, "tools"),
    (
        "responses",
        {"input": [SAID | {"content": [{"type": "input_text", "text": ""}] * 1025}]},
        TOO_LONG,
        "input[0].content",
    ),
    (
        "responses",
        {"instructions": "x", "input": [SAID | {"content": [TOO_LARGE_INPUT_IMAGE]}]},
        "string_above_max_length",
        "input[0].content[0].image_url",
    ),
    ("embeddings", {"input": [[1]] * 40_000}, TOO_LONG, None),
    ("completions", {"prompt": ["x"] * 2049}, TOO_LONG, "prompt"),
    ("completions", {"prompt": ["x"] * 2048, "guided_json": {"x": "y" * 4096}}, TOO_LONG, "prompt"),
    ("embeddings", {"input": ["x"] * 2049}, TOO_LONG, "input"),
    ("embeddings", {"input": [1] * 2049}, TOO_LONG, "input"),
    ("embeddings", {"input": [[1] * 150_000, [1] * 150_001]}, None, "input"),
    ("detokenize", {"tokens": [1] * (2**20 + 1)}, TOO_LONG, None),
    ("images", {"prompt": "é" * 32_001}, "string_above_max_length", "prompt"),
    ("images", {"negative_prompt": "é" * 32_001}, "string_above_max_length", "negative_prompt"),
]
# Requests whose lists are exactly at their limits, which are accepted.
AT_LIMIT: list[tuple[str, dict[str, Any]]] = [
    ("chat", {"tools": [TOOL] * 128, "stop": ["1", "2", "3", "4"], "n": 128}),
    ("chat", messages("x", 2048)),
    ("chat", messages([IMAGE_PART] * 16)),
    ("chat", messages("[" * 100_000 + '"[')),
    ("chat", {"logit_bias": {str(i): 100 for i in range(1024)}}),
    ("chat", {"metadata": {f"{i:064}": "v" * 512 for i in range(16)}}),
    ("responses", {"input": [SAID] * 2048, "tools": [NAMESPACE]}),
    ("completions", {"prompt": ["x"] * 2048}),
    ("detokenize", {"tokens": [1] * 2**20}),
    ("completions", {"prompt": ["x"] * 16, "n": 128}),
    ("embeddings", {"input": ["x"] * 2048}),
    ("embeddings", {"input": [1] * 2048}),
    ("embeddings", {"input": [[1] * 150_000, [1] * 150_000]}),
    ("images", {"prompt": "é" * 32_000, "negative_prompt": "é" * 32_000, "n": 10}),
]


def body_of(endpoint: str, row: dict[str, Any]) -> bytes:
    if "raw" in row:
        return str(row["raw"]).encode()
    if "base64" in row:
        return base64.b64decode(row["base64"])
    return json.dumps(row["body"] if "body" in row else VALID[endpoint] | row["with"]).encode()


def rows(table: str, *endpoints: str) -> list[Any]:
    found = json.loads((GOLDEN / "errors" / f"{table}.json").read_text())
    return [
        pytest.param(endpoint, row, id=f"{endpoint}-{row['case']}")
        for endpoint in endpoints
        for row in found
    ]


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize(
    ("endpoint", "row"),
    [
        *rows("bodies", "chat"),
        *rows("chat", "chat"),
        *rows("responses", "responses"),
        *rows("completions", "completions"),
        *rows("embeddings", "embeddings"),
        *rows("images", "images"),
        *rows("tokenize", "tokenize"),
        *rows("detokenize", "detokenize"),
    ],
)
def test_refused_request_gets_the_error_of_the_table(
    endpoint: str, row: dict[str, Any], lenient: bool
) -> None:
    if lenient and row["code"] == "unknown_parameter":
        PARSERS[endpoint](body_of(endpoint, row), ignore_unknown=True)
        return
    with pytest.raises(OpenAIError) as raised:
        PARSERS[endpoint](body_of(endpoint, row), ignore_unknown=lenient)
    error = raised.value
    assert (error.status, error.code, error.param) == (400, row["code"], row["param"])
    assert error.message == row.get("message", error.message)
    assert error.type == "invalid_request_error"
    assert not error.headers()
    assert len(error.body()) <= 1024


@pytest.mark.parametrize(("endpoint", "row"), rows("bodies", *(n for n in PARSERS if n != "chat")))
def test_malformed_body_is_refused_by_every_endpoint(endpoint: str, row: dict[str, Any]) -> None:
    with pytest.raises(OpenAIError) as raised:
        PARSERS[endpoint](body_of(endpoint, row))
    assert raised.value.status == 400


@pytest.mark.parametrize(("endpoint", "parameters", "code", "param"), LARGE)
def test_list_above_its_limit_is_refused(
    endpoint: str, parameters: dict[str, Any], code: str | None, param: str | None
) -> None:
    with pytest.raises(OpenAIError) as raised:
        PARSERS[endpoint](body_of(endpoint, {"with": parameters}))
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, param)


@pytest.mark.parametrize(("endpoint", "parameters"), AT_LIMIT)
def test_list_at_its_limit_is_accepted(endpoint: str, parameters: dict[str, Any]) -> None:
    PARSERS[endpoint](body_of(endpoint, {"with": parameters}))


def test_error_body_has_message_type_param_and_code() -> None:
    error = OpenAIError(400, 'a "quoted" é', code=None, param="n")
    assert json.loads(error.body()) == {
        "error": {
            "message": 'a "quoted" é',
            "type": "invalid_request_error",
            "param": "n",
            "code": None,
        }
    }


@pytest.mark.parametrize(
    ("refused", "named"),
    [
        ("tools", "functions"),
        ("tools[0].function.name", "functions[0].name"),
        ("tool_choice", "function_call"),
        ("messages", "messages"),
    ],
)
def test_error_of_the_service_names_the_parameter_as_the_client_sent_it(
    refused: str, named: str
) -> None:
    body = VALID["chat"] | {"functions": [{"name": "find"}], "function_call": {"name": "find"}}
    call = parse_chat_request(json.dumps(body).encode())
    error = OpenAIError(400, f"Unsupported parameter: '{refused}'.", param=refused)
    error = error.in_terms_of(call.other_names)
    assert (error.param, error.message) == (named, f"Unsupported parameter: '{named}'.")


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        ({"structured_outputs": {"json": {}}}, "structured_outputs.json"),
        ({"guided_json": {}}, "guided_json"),
        ({}, "response_format.json_schema.schema"),
    ],
)
def test_place_within_a_schema_is_in_the_clients_words(body: dict[str, Any], prefix: str) -> None:
    call = parse_chat_request(json.dumps(VALID["chat"] | body).encode())
    place = "response_format.json_schema.schema.properties.a.not"
    error = OpenAIError(400, f"In response_format: '{place}' fails.", param="response_format")
    error = error.in_terms_of(call.other_names)
    assert f"'{prefix}.properties.a.not' fails" in error.message
    assert prefix.startswith(str(error.param))
