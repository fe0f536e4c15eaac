"""Cases of Codex on /v1/responses: each sends a request of its form and checks the response.

bench/responses_cases.py has the cases that hold with any model, which `python -m bench.responses`
runs against other servers too. Those below need a model with a known answer. tests/clients runs
Codex itself.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from bench.responses_api import (
    BEFORE,
    CODEX,
    PATCH,
    PATH,
    SEARCH,
    TOOLS,
    Api,
    Case,
    closed,
    final,
    message,
    names,
)
from bench.responses_api import TEXT as STRING
from bench.responses_cases import CASES
from inference.config import ENGINES, AliasConfig, ModelConfig
from tests.clients.good_model import ANSWER, REASONING
from tests.conftest import Stack, StartStack
from tests.contract.test_responses import events, plain, text_of

MODEL = "gpt-5-codex"
ALL_TOOLS = [*TOOLS, PATCH, SEARCH]


@pytest.fixture
def transport() -> str:
    return "session"


@pytest.fixture
async def codex(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setitem(ENGINES, "scripted-good", ("tests.clients.good_model", "GoodModel"))
    alias = AliasConfig(name=MODEL)
    return await start_stack(ModelConfig(id="good", engine="scripted-good", aliases=(alias,)))


def asked(text: str, /, *more: dict[str, Any], **changed: Any) -> dict[str, Any]:
    items = [*BEFORE, message("user", text, 4), *more]
    return {"model": MODEL, **CODEX, "tools": ALL_TOOLS, "input": items, **changed}


async def turn(stack: Stack, body: dict[str, Any]) -> list[dict[str, Any]]:
    return await events(stack, **body)


def output_of(call: dict[str, Any], output: Any) -> dict[str, Any]:
    return {"type": f"{call['type']}_output", "id": "o_1", "call_id": call["call_id"],
            "output": output}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_case_of_any_model_holds(case: Case, codex: Stack) -> None:
    async with aiohttp.ClientSession(codex.url) as http:
        await case.run(Api(http, MODEL))


async def test_case_04_item_done_has_the_whole_message(codex: Stack) -> None:
    found = await turn(codex, asked("Hello"))
    (done,) = [event for event in found if event["type"] == "response.output_item.done"]
    assert done["item"]["content"] == [
        {"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}
    ]


async def test_case_05_ids_of_events_are_those_of_the_response(codex: Stack) -> None:
    found = await turn(codex, asked("think first. Use exec_command with cmd = pwd."))
    ids = {item["id"] for item in final(found)["output"]}
    seen = {event["item_id"] for event in found if "item_id" in event}
    assert seen == ids
    assert len(ids) == 2


async def test_case_09_output_of_the_command_reaches_the_model(codex: Stack) -> None:
    first = final(await turn(codex, asked("Use exec_command with cmd = pwd.")))
    (call,) = first["output"]
    body = asked("Use exec_command with cmd = pwd.", call, output_of(call, "/w"))
    (answer,) = final(await turn(codex, body))["output"]
    assert text_of(answer) == "The tools returned: /w"


async def test_case_10_call_of_a_namespace_has_namespace_and_name(codex: Stack) -> None:
    found = await turn(codex, asked("Use multi_agent_v1__close_agent with target = bob."))
    (call,) = final(found)["output"]
    assert (call["namespace"], call["name"]) == ("multi_agent_v1", "close_agent")
    assert found[2]["item"]["namespace"] == "multi_agent_v1"


async def test_case_11_call_of_a_namespace_makes_a_round_trip(codex: Stack) -> None:
    wish = "Use multi_agent_v1__close_agent with target = bob."
    (call,) = final(await turn(codex, asked(wish)))["output"]
    (answer,) = final(await turn(codex, asked(wish, call, output_of(call, "closed"))))["output"]
    assert text_of(answer) == "The tools returned: closed"


async def test_case_12_custom_tool_has_its_input_as_text(codex: Stack) -> None:
    found = await turn(codex, asked("Use apply_patch with input = patch."))
    (call,) = final(found)["output"]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "patch",
    )
    assert "custom_tool_call_input.delta" in names(found)
    assert "custom_tool_call_input.done" in names(found)
    assert "function_call_arguments.delta" not in names(found)


async def test_case_13_custom_tool_makes_a_round_trip(codex: Stack) -> None:
    wish = "Use apply_patch with input = patch."
    (call,) = final(await turn(codex, asked(wish)))["output"]
    (answer,) = final(await turn(codex, asked(wish, call, output_of(call, "Done!"))))["output"]
    assert text_of(answer) == "The tools returned: Done!"


async def test_case_14_parallel_calls_are_items_of_their_own(codex: Stack) -> None:
    wish = "Use exec_command and write_stdin with cmd = pwd."
    calls = final(await turn(codex, asked(wish)))["output"]
    assert [call["name"] for call in calls] == ["exec_command", "write_stdin"]
    assert len({call["call_id"] for call in calls}) == 2
    outputs = [output_of(call, call["name"]) for call in reversed(calls)]
    (answer,) = final(await turn(codex, asked(wish, *calls, *outputs)))["output"]
    assert text_of(answer) == "The tools returned: exec_command, write_stdin"


async def test_case_15_one_call_without_parallel_calls(codex: Stack) -> None:
    wish = "Use exec_command and write_stdin with cmd = pwd."
    calls = final(await turn(codex, asked(wish, parallel_tool_calls=False)))["output"]
    assert [call["name"] for call in calls] == ["exec_command"]


async def test_case_16_unknown_tools_are_left_out_of_the_response(codex: Stack) -> None:
    tools = [*ALL_TOOLS, {"type": "local_shell"}, {"type": "unheard_of", "options": [1]}]
    response = final(await turn(codex, asked("Hello", tools=tools)))
    types = [tool["type"] for tool in response["tools"]]
    assert types == ["function", "function", "function", "namespace", "custom"]


async def test_case_17_only_tools_of_others_are_a_chat_without_tools(codex: Stack) -> None:
    response = final(await turn(codex, asked("Hello", tools=[{"type": "web_search"}])))
    assert response["tools"] == []
    assert text_of(response["output"][0]) == ANSWER


async def test_case_18_reasoning_comes_before_the_answer(codex: Stack) -> None:
    found = await turn(codex, asked("think first"))
    thought, answer = final(found)["output"]
    assert (thought["type"], text_of(thought)) == ("reasoning", REASONING)
    assert (thought["summary"], thought["encrypted_content"]) == ([], None)
    assert text_of(answer) == ANSWER
    assert "reasoning_text.delta" in names(found)


async def test_case_19_reasoning_is_sent_back(codex: Stack) -> None:
    wish = "think first. Use exec_command with cmd = pwd."
    thought, call = final(await turn(codex, asked(wish)))["output"]
    body = asked(wish, thought, call, output_of(call, "/w"))
    (answer,) = final(await turn(codex, body))["output"]
    assert text_of(answer) == "The tools returned: /w"


async def test_case_20_encrypted_reasoning_of_others_is_ignored(codex: Stack) -> None:
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "a"}],
    }
    body = asked("Hello", sealed, said, message("user", "And?", 5))
    assert text_of(final(await turn(codex, body))["output"][0]) == ANSWER


async def test_case_21_commentary_and_final_answer_are_messages(codex: Stack) -> None:
    said = {
        "type": "message", "role": "assistant", "phase": "commentary", "status": "completed",
        "content": [{"type": "output_text", "text": "I look."}],
    }  # fmt: skip
    call = {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{}"}
    body = asked("Hello", said, call, output_of(call, "/w"))
    assert text_of(final(await turn(codex, body))["output"][0]) == "The tools returned: /w"


async def test_case_22_viewed_image_reaches_the_model(codex: Stack) -> None:
    pixel = {"type": "input_image", "detail": "high",
             "image_url": "data:image/png;base64,iVBORw0KGgo="}  # fmt: skip
    call = {"type": "function_call", "call_id": "c", "name": "view_image",
            "arguments": '{"path":"a.png"}'}  # fmt: skip
    body = asked("Look.", call, output_of(call, [pixel]))
    assert text_of(final(await turn(codex, body))["output"][0]) == "I see 1 of image/png."


async def test_case_23_attached_image_reaches_the_model(codex: Stack) -> None:
    attached = message("user", "Look.", 5)
    attached["content"].append({"type": "input_image", "image_url": "data:image/png;base64,iVBO"})
    answer = final(await turn(codex, asked("Look.") | {"input": [*BEFORE, attached]}))["output"][0]
    assert text_of(answer) == "I see 1 of image/png."


async def test_case_24_aborted_call_has_an_output_too(codex: Stack) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{"}
    body = asked("Hello", call, output_of(call, "aborted"), message("user", "Stop.", 6))
    assert text_of(final(await turn(codex, body))["output"][0]) == ANSWER


async def test_case_25_final_answer_of_a_schema(codex: Stack) -> None:
    schema = closed(city=STRING)
    form = {"type": "json_schema", "name": "codex_output_schema", "strict": True, "schema": schema}
    body = asked("city = Rome", text={"format": form, "verbosity": "low"})
    answer = final(await turn(codex, body))["output"][0]
    assert json.loads(text_of(answer)) == {"city": "Rome"}


async def test_case_26_too_long_a_conversation_has_a_code_that_codex_knows(codex: Stack) -> None:
    body = asked("x " * 9000, stream=True)
    async with codex.http.post(PATH, json=body) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_case_30_plain_response_is_the_streamed_one(codex: Stack) -> None:
    whole = await plain(codex, **asked("think first"))
    streamed = final(await turn(codex, asked("think first")))
    assert [text_of(item) for item in whole["output"]] == [
        text_of(item) for item in streamed["output"]
    ]
