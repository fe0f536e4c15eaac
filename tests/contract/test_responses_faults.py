"""/v1/responses refuses the faults of a chat, with the same code and message in its own words.

Faults of JSON and of the edge's own rules are in tests/golden/errors/responses.json.
"""

from __future__ import annotations

from typing import Any

import pytest

from edge.openai.responses.schema import ResponsesRequest
from tests.conftest import EMBEDDING, TEXT, Stack, StartStack
from tests.contract.test_fault_parity import CHAT, DEFAULTS, FAULTS, INVALID, Fault, over_rest

PATH = "/v1/responses"
VALID: dict[str, Any] = {"model": "scripted", "input": "hi"}
# Choices without tools are faults of a chat only.
MEMBERS = {*ResponsesRequest.__struct_fields__} - {"tools", "tool_choice", "parallel_tool_calls"}
# Faults of a chat that a response can have in the same words.
SAME = [
    fault
    for fault in FAULTS
    if fault.path == CHAT and fault.parameters and fault.parameters.keys() <= MEMBERS
]
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "r"}
FUNCTION = {"type": "function", "name": "f"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
LONG_TEXT = "string_above_max_length"
# Faults that only the inference service finds: name, parameters, code, param.
OWN: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("context", {"model": "tiny", "input": "x " * 9}, "context_length_exceeded", "input"),
    ("min_tokens", {"max_output_tokens": 2, "min_tokens": 3}, "integer_above_max_value",
     "min_tokens"),
    ("long name of a call", {"input": [{"role": "user", "content": "x"},
     CALL | {"name": "f" * 257}, OUTPUT]}, LONG_TEXT, "input[1].name"),
    ("long name of a second call", {"instructions": "x", "input": [CALL, CALL | {"call_id": "d",
     "name": "f" * 257}, OUTPUT, OUTPUT | {"call_id": "d"}]}, LONG_TEXT, "input[1].name"),
    ("output of no call", {"input": [OUTPUT]}, None, "input[0].call_id"),
    ("129 calls", {"instructions": "x", "input": [
        {"role": "user", "content": "x"}, *(CALL | {"call_id": f"c{i}"} for i in range(129)),
        *(OUTPUT | {"call_id": f"c{i}"} for i in range(129))]}, "array_above_max_length",
     "input[129]"),
    ("1025 parts between calls", {"instructions": "x", "input": [
        {"role": "user", "content": "x"}, CALL, *[{"role": "assistant", "content": "x"}] * 1025,
        OUTPUT]}, "array_above_max_length", "input[1]"),
    ("image for a text model", {"instructions": "x", "input": [{"role": "user", "content": [
     {"type": "input_text", "text": "x"}, IMAGE]}]}, "unsupported_value",
     "input[0].content[1].type"),
    ("image of a tool for a text model", {"input": [CALL, OUTPUT | {"output": [IMAGE]}]},
     "unsupported_value", "input[1].output[0].type"),
    ("long description of a tool", {"tools": [{"type": "web_search"}, FUNCTION
     | {"description": "x" * 65_537}]}, LONG_TEXT, "tools[1].description"),
    ("long description in a namespace", {"tools": [{"type": "namespace", "name": "n", "tools": [
     FUNCTION, FUNCTION | {"name": "g", "description": "x" * 65_537}]}]}, LONG_TEXT,
     "tools[0].tools[1].description"),
    ("large schema", {"text": {"format": {"type": "json_schema", "name": "n", "schema": {
     "x": "y" * 65_536}}}}, LONG_TEXT, "text.format.schema"),
]  # fmt: skip


@pytest.fixture
def transport() -> str:
    """Errors of the service are the same over both transports, so one is enough."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING)


def test_most_faults_of_sampling_are_in_the_table() -> None:
    assert len(SAME) >= 30


@pytest.mark.parametrize("fault", SAME, ids=lambda fault: fault.name)
async def test_fault_of_a_chat_is_the_same_fault_here(stack: Stack, fault: Fault) -> None:
    asked = fault.parameters
    if fault.status == 404 and fault.param == "model":
        # The message names the endpoint.
        status, *_, param, message = await over_rest(stack, PATH, VALID | asked)
        assert (status, param) == (404, "model")
        assert "v1/responses" in message
        return
    chat = await over_rest(stack, CHAT, DEFAULTS[CHAT] | asked)
    for more in ({}, {"stream": True}):
        assert await over_rest(stack, PATH, VALID | asked | more) == chat


@pytest.mark.parametrize(
    ("asked", "code", "param"), [row[1:] for row in OWN], ids=[r[0] for r in OWN]
)
async def test_fault_that_the_service_finds_has_the_name_of_this_request(
    stack: Stack, asked: dict[str, Any], code: str | None, param: str
) -> None:
    for more in ({}, {"stream": True}):
        status, type_, got, named, message = await over_rest(stack, PATH, VALID | asked | more)
        assert (status, type_, got, named) == (400, INVALID, code, param)
        for name in ("messages", "max_tokens", "response_format", ".function", "tool_calls"):
            assert name not in message
