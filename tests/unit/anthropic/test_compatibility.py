"""Every parameter does what docs/compatibility.md says, and the page has every parameter."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsStreaming

from edge.anthropic.request import parse_count_tokens_request, parse_messages_request
from edge.anthropic.schema import CountTokensRequest, MessagesRequest
from edge.openai.errors import OpenAIError
from tests.unit.anthropic.parameters import MESSAGES, TOOL, USER
from tests.unit.openai import test_compatibility as table
from tests.unit.openai.golden_files import fields
from tests.unit.openai.parameters import Json, Parameter
from tests.unit.openai.parameters_walk import (
    is_known,
    schema_literals,
    schema_parameters,
    sdk_literals,
    sdk_parameters,
)

VALID: Json = {"model": "m", "max_tokens": 50, "messages": [USER]}
ENDPOINT = table.Endpoint(
    MessagesRequest, MessageCreateParamsStreaming, parse_messages_request, VALID, MESSAGES
)
KNOWN = schema_parameters(MessagesRequest)
# Blocks that no turn takes: those of tools that Anthropic's servers run, and of files.
UNKNOWN_BLOCKS = (
    "server_tool_use", "web_search_tool_result", "web_fetch_tool_result",
    "code_execution_tool_result", "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result", "tool_search_tool_result", "container_upload",
    "browser_state",
)  # fmt: skip
# Tools that Anthropic's servers run, and those that only Anthropic's models know.
LEFT_OUT = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_")
REFUSED_TOOLS = ("bash_", "text_editor_", "memory_", "computer_", "browser_")


def rows(status: str = "") -> list[Any]:
    return [
        pytest.param(parameter, id=f"{parameter.path} {parameter.status}")
        for parameter in MESSAGES
        if status in ("", parameter.status)
    ]


@pytest.mark.parametrize("parameter", rows(table.HONOURED))
def test_honoured_parameter_has_its_effect(parameter: Parameter) -> None:
    table.test_honoured_parameter_has_its_effect(ENDPOINT, parameter)


@pytest.mark.parametrize("parameter", rows(table.NO_EFFECT))
def test_parameter_without_effect_changes_nothing(parameter: Parameter) -> None:
    table.test_parameter_without_effect_changes_nothing(ENDPOINT, parameter)


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize("parameter", rows(table.REFUSED))
def test_refused_parameter_is_named(parameter: Parameter, lenient: bool) -> None:
    table.test_refused_parameter_is_named(ENDPOINT, parameter, lenient)
    table.test_accepted_value_of_a_refused_parameter_changes_nothing(ENDPOINT, parameter)


@pytest.mark.parametrize("parameter", rows())
def test_null_and_empty_equal_absence(parameter: Parameter) -> None:
    table.test_null_equals_absence_for_every_optional_parameter(ENDPOINT, parameter)
    body = VALID | parameter.sample
    absent = table.outcome_or_none(ENDPOINT, table.without(body, parameter.path))
    for empty in table.schema_empties(KNOWN[parameter.path]) if absent is not None else ():
        assert table.outcome(ENDPOINT, table.with_value(body, parameter.path, empty)) == absent


def test_every_parameter_has_a_row() -> None:
    table.test_every_parameter_has_a_row(ENDPOINT)


def test_page_equals_the_tested_table() -> None:
    assert table.page_rows("Messages") == table.known_rows(MESSAGES)


def sdk_paths(typed_dict: Any) -> dict[str, Any]:
    """The SDK's parameters, without those of types that other tests refuse or leave out.

    The SDK's types allow every block in every turn; the API itself does not.
    """
    found = {}
    for path, theirs in sdk_parameters(typed_dict).items():
        tags = re.findall(r"content\[(\w+)\]", path)
        if set(tags) & set(UNKNOWN_BLOCKS):
            continue
        turn = re.match(r"messages\[(\w+)\]\.content\[(\w+)\]", path)
        if turn and not any(known.startswith(turn[0]) for known in KNOWN):
            continue
        found[re.sub(r"^tools\[\w+\]", "tools[]", path)] = theirs
    return found


@pytest.mark.parametrize("typed_dict", [MessageCreateParamsStreaming, MessageCountTokensParams])
def test_every_parameter_of_the_sdk_is_known(typed_dict: Any) -> None:
    found = sdk_paths(typed_dict)
    assert len(found) > 200
    for path, theirs in found.items():
        assert is_known(path, KNOWN), path
        accepted = schema_literals(KNOWN[path]) if path in KNOWN else None
        assert accepted is None or sdk_literals(theirs) <= accepted, path


@pytest.mark.parametrize("kind", UNKNOWN_BLOCKS)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_unknown_blocks_are_refused_by_name(kind: str, role: str) -> None:
    turn = {"role": role, "content": [{"type": kind}]}
    with pytest.raises(OpenAIError, match=f"'{kind}'") as raised:
        parse_messages_request(json.dumps(VALID | {"messages": [turn, USER]}).encode())
    assert raised.value.param == "messages[0].content[0].type"


def tool_types() -> set[str]:
    paths = sdk_parameters(MessageCreateParamsStreaming)
    return {match[1] for path in paths if (match := re.match(r"tools\[(\w+)\]\.", path))}


@pytest.mark.parametrize("kind", sorted(tool_types()))
def test_tools_of_anthropic_are_left_out_or_refused(kind: str) -> None:
    body = VALID | {"tools": [{"type": kind, "name": "x"}, TOOL]}
    if kind.startswith(REFUSED_TOOLS):
        with pytest.raises(OpenAIError, match=f"'{kind}'") as raised:
            table.outcome(ENDPOINT, body)
        assert raised.value.param == "tools[0].type"
        return
    assert kind.startswith(LEFT_OUT)
    assert table.outcome(ENDPOINT, body) == table.outcome(ENDPOINT, VALID | {"tools": [TOOL]})
    assert table.outcome(ENDPOINT, VALID | {"tools": body["tools"][:1]}) == table.outcome(
        ENDPOINT, VALID
    )


def test_count_tokens_takes_what_decides_the_prompt() -> None:
    counted = schema_parameters(CountTokensRequest)
    assert counted.keys() <= KNOWN.keys()
    for parameter in MESSAGES:
        body = {k: v for k, v in (VALID | parameter.sample).items() if k in counted}
        if parameter.path not in counted or parameter.param or parameter.status == table.REFUSED:
            continue
        request, _ = parse_count_tokens_request(json.dumps(body).encode())
        whole = parse_messages_request(json.dumps(body | {"max_tokens": 20_000}).encode())
        assert fields(request)["chat"] == fields(whole.requests[0])["chat"]
