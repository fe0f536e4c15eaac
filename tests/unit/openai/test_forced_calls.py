"""A constraint of the text in a request whose tool choice forces a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.openai.chat.request import parse_chat_request

_TOOL = {"type": "function", "function": {"name": "f"}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize("form", [_SCHEMA, {"type": "json_object"}])
@pytest.mark.parametrize(
    ("choice", "constrained"), [("auto", True), ("none", True), ("required", False), (_TOOL, False)]
)
def test_response_format_applies_unless_a_call_is_forced(
    form: dict[str, Any], choice: Any, constrained: bool
) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "json"}],
        "tools": [_TOOL],
        "tool_choice": choice,
        "response_format": form,
    }
    (request,) = parse_chat_request(json.dumps(body).encode()).requests
    assert request.HasField("constraint") == constrained


def test_structured_outputs_are_passed_on_beside_a_forced_call() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "json"}],
        "tools": [_TOOL],
        "tool_choice": "required",
        "structured_outputs": {"json": {"type": "object"}},
    }
    (request,) = parse_chat_request(json.dumps(body).encode()).requests
    assert request.HasField("constraint"), "the service refuses it"
