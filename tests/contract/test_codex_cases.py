"""What Codex sends to /v1/responses and expects of it, one case after another.

The bodies have the form of those of Codex 0.171: no `instructions`, two developer messages, a
namespace of tools, a `web_search` without a name, `store: false` and reasoning that is to be
encrypted. tests/clients runs Codex itself.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.config import ENGINES, AliasConfig, ModelConfig
from tests.clients.good_model import ANSWER, REASONING
from tests.conftest import Stack, StartStack
from tests.contract.test_responses import PATH, events, plain, text_of


def message(role: str, text: str, number: int) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_{number}", "role": role, "content": content}


def function(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "name": name,
        "description": "A tool.",
        "strict": False,
        "parameters": schema,
    }


TEXT = {"type": "string"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch"}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": GRAMMAR}
TOOLS = [
    function("exec_command", cmd=TEXT),
    function("write_stdin", session_id={"type": "number"}),
    function("view_image", path=TEXT),
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Agents.",
        "tools": [function("close_agent", target=TEXT), function("spawn_agent", task=TEXT)],
    },
    PATCH,
    {"type": "web_search", "external_web_access": False},
    {"type": "tool_search", "execution": "client", "description": "Finds tools.",
     "parameters": {"type": "object", "properties": {}}},
]  # fmt: skip
BEFORE = [
    message("developer", "You are a coding agent.", 1),
    message("developer", "<permissions>never ask</permissions>", 2),
    message("user", "<environment_context><cwd>/w</cwd></environment_context>", 3),
]
CODEX: dict[str, Any] = {
    "model": "gpt-5-codex",
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22ceb-ed75-7092-b1ff-f8520f7792b0",
    "client_metadata": {"x-codex-installation-id": "b4f1"},
}
HEADERS = {
    "accept": "text/event-stream",
    "originator": "codex_exec",
    "session-id": "01a22ceb",
    "thread-id": "01a22ceb",
    "x-codex-turn-metadata": '{"turn_id":"1"}',
    "user-agent": "codex_exec/0.171.0",
}


@pytest.fixture
def transport() -> str:
    return "session"


@pytest.fixture
async def codex(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setitem(ENGINES, "scripted-good", ("tests.clients.good_model", "GoodModel"))
    alias = AliasConfig(name="gpt-5-codex")
    return await start_stack(ModelConfig(id="good", engine="scripted-good", aliases=(alias,)))


def asked(text: str, /, *more: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return CODEX | {"input": [*BEFORE, message("user", text, 4), *more], **changed}


async def turn(stack: Stack, body: dict[str, Any]) -> list[dict[str, Any]]:
    return await events(stack, **body)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


def final(found: list[dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = found[-1]["response"]
    return response


def output_of(call: dict[str, Any], output: Any) -> dict[str, Any]:
    return {"type": f"{call['type']}_output", "id": "o_1", "call_id": call["call_id"],
            "output": output}  # fmt: skip


async def test_case_01_request_with_codexs_headers_is_a_stream(codex: Stack) -> None:
    body = asked("What is the capital of France?", stream=True)
    async with codex.http.post(PATH, json=body, headers=HEADERS) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert ANSWER.split()[-1] in await response.text()


async def test_case_02_answer_has_every_event_of_a_message(codex: Stack) -> None:
    found = names(await turn(codex, asked("What is the capital of France?")))
    without_deltas = [name for name in found if not name.endswith(".delta")]
    assert without_deltas == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


async def test_case_03_completed_response_has_id_and_usage(codex: Stack) -> None:
    response = final(await turn(codex, asked("Hello")))
    assert response["id"].startswith("resp_")
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert usage["output_tokens_details"]["reasoning_tokens"] == 0


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


async def test_case_06_parameters_are_repeated(codex: Stack) -> None:
    response = final(await turn(codex, asked("Hello")))
    assert response["store"] is False
    assert response["prompt_cache_key"] == CODEX["prompt_cache_key"]
    assert response["parallel_tool_calls"] is True
    assert response["tool_choice"] == "auto"
    assert response["reasoning"] == {"effort": None, "summary": "auto"}


async def test_case_07_function_call_has_arguments_deltas_and_done(codex: Stack) -> None:
    found = await turn(codex, asked("Use exec_command with cmd = pwd."))
    assert names(found)[2] == "output_item.added"
    assert "function_call_arguments.delta" in names(found)
    (done,) = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert json.loads(done["arguments"]) == {"cmd": "pwd"}


async def test_case_08_added_call_has_its_name_and_call_id(codex: Stack) -> None:
    found = await turn(codex, asked("Use exec_command with cmd = pwd."))
    added = found[2]["item"]
    assert (added["name"], added["arguments"]) == ("exec_command", "")
    assert added["call_id"] == final(found)["output"][0]["call_id"]


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
    tools = [*TOOLS, {"type": "local_shell"}, {"type": "unheard_of", "options": [1]}]
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
    answer = final(await turn(codex, CODEX | {"input": [*BEFORE, attached]}))["output"][0]
    assert text_of(answer) == "I see 1 of image/png."


async def test_case_24_aborted_call_has_an_output_too(codex: Stack) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{"}
    body = asked("Hello", call, output_of(call, "aborted"), message("user", "Stop.", 6))
    assert text_of(final(await turn(codex, body))["output"][0]) == ANSWER


async def test_case_25_final_answer_of_a_schema(codex: Stack) -> None:
    schema = {
        "type": "object",
        "properties": {"city": TEXT},
        "required": ["city"],
        "additionalProperties": False,
    }
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


async def test_case_27_answer_that_runs_out_of_tokens_is_incomplete(codex: Stack) -> None:
    found = await turn(codex, asked("Hello", max_output_tokens=2))
    assert names(found)[-1] == "incomplete"
    assert final(found)["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final(found)["output"][-1]["status"] == "incomplete"


async def test_case_28_unknown_model_is_404_before_the_stream(codex: Stack) -> None:
    async with codex.http.post(PATH, json=asked("Hello", model="none", stream=True)) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"


async def test_case_29_effort_and_instructions_of_known_models(codex: Stack) -> None:
    body = asked(
        "Hello", instructions="You are Codex.", reasoning={"effort": "medium", "summary": "auto"}
    )
    response = final(await turn(codex, body))
    assert response["instructions"] == "You are Codex."
    assert response["reasoning"]["effort"] == "medium"


async def test_case_30_plain_response_is_the_streamed_one(codex: Stack) -> None:
    whole = await plain(codex, **asked("think first"))
    streamed = final(await turn(codex, asked("think first")))
    assert [text_of(item) for item in whole["output"]] == [
        text_of(item) for item in streamed["output"]
    ]
