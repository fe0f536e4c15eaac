"""The OpenAPI document is complete and agrees with the decoders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edge.openai.chat.request import parse_chat_request
from edge.openai.errors import OpenAIError
from edge.openapi.document import openapi_document

DOCUMENT = json.loads(openapi_document(version="1.2.3", ignore_unknown=False, keyed=True))
SCHEMAS = DOCUMENT["components"]["schemas"]
REQUESTS = (
    "ChatRequest",
    "ResponsesRequest",
    "InputTokensRequest",
    "CompletionRequest",
    "EmbeddingsRequest",
    "ImageRequest",
    "MessagesRequest",
    "CountTokensRequest",
    "TokenizationRequest",
    "DetokenizationRequest",
)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for entry in node:
            yield from nodes(entry)


def schema_errors(body: dict[str, Any]) -> list[str]:
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(body)]


def is_accepted(body: dict[str, Any]) -> bool:
    try:
        parse_chat_request(json.dumps(body, separators=(",", ":")).encode())
    except OpenAIError:
        return False
    return True


def test_every_reference_resolves_and_every_schema_is_used() -> None:
    references = [node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)]
    for reference in references:
        place = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]
    used = {reference.rpartition("/")[2] for reference in references}
    assert not SCHEMAS.keys() - used


def test_schema_names_are_unique_across_modules() -> None:
    """msgspec puts the module, with dots, before a name that two types share."""
    assert not [name for name in SCHEMAS if "." in name]


def test_every_operation_and_object_is_described() -> None:
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert not [name for name, schema in SCHEMAS.items() if not schema.get("description")]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_parameter_is_described(name: str) -> None:
    parameters = SCHEMAS[name]["properties"]
    assert not [
        parameter for parameter in parameters if not parameters[parameter].get("description")
    ]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("audio", {"voice": "x"}),
        ("use_beam_search", True),
        ("use_beam_search", False),
        ("length_penalty", 1.0),
        ("documents", []),
        ("web_search_options", None),
        ("stream_options", None),
        ("user", None),
        ("tools", None),
        ("stop", ""),
        ("stop", ["a"] * 5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"17": 1}),
        ("modalities", ["text"]),
        ("modalities", ["audio"]),
        ("unheard_of", 1),
        ("chat_template_kwargs", []),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}),
        ("response_format", {"type": "text"}),
        ("model", ""),
        ("messages", []),
        ("messages", ""),
        ("messages", [{"role": "system", "content": None}]),
        ("messages", [{"role": "system", "content": [{"text": "no type"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "file", "file": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
        ("messages", [{"role": "assistant", "content": "hi", "audio": {"id": "x"}}]),
        ("messages", [{"role": "assistant", "content": "hi", "audio": None}]),
    ],
)
def test_schema_and_decoder_agree(parameter: str, value: object) -> None:
    body = {**CHAT, parameter: value}
    assert is_accepted(body) is not bool(schema_errors(body)), schema_errors(body)


def test_patterns_use_no_python_only_syntax() -> None:
    patterns = [node["pattern"] for node in nodes(DOCUMENT) if isinstance(node.get("pattern"), str)]
    assert patterns
    assert not [pattern for pattern in patterns if re.search(r"\\[AZ]|\(\?P", pattern)]


def test_properties_that_are_always_sent_are_required() -> None:
    assert {"object", "usage", "choices"} <= set(SCHEMAS["ChatCompletion"]["required"])
    assert SCHEMAS["ChatCompletion"]["properties"]["object"]["const"] == "chat.completion"
    assert "metadata" not in SCHEMAS["ChatCompletion"]["required"]
    assert {"content", "refusal", "role"} <= set(SCHEMAS["Message"]["required"])
