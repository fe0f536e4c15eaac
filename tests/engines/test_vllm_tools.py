"""Tool calls of a real model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import ClientSession

from inference.engines.base import TextEngine
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2, generate_pb2
from tests.engines.generating import chat, prepare, run

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

_WEATHER = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
)


async def test_named_tool_is_called(engine: TextEngine) -> None:
    tools = [
        {"name": "get_weather", "description": "Weather", "parameters_json": _WEATHER},
        {"name": "get_time"},
    ]
    choice = {"mode": chat_pb2.ToolChoice.MODE_FUNCTION, "function_name": "get_weather"}
    request = chat("What is the weather in Paris?", tools=tools, tool_choice=choice)
    result = await run(engine, request, 128)
    assert result.names == {(0, 0): "get_weather"}
    assert result.ids[0, 0]
    assert json.loads(result.arguments[0, 0]).keys() == {"city"}
    assert result.texts.get(0, "") == ""
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_TOOL_CALLS
    cut = await run(engine, request, 12)
    assert cut.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


async def test_required_tool_call_is_one_of_the_allowed_functions(engine: TextEngine) -> None:
    tools = [{"name": "get_weather", "parameters_json": _WEATHER}, {"name": "get_time"}]
    required = chat_pb2.ToolChoice.MODE_REQUIRED
    choice = {"mode": required, "allowed_functions": ["get_weather"]}
    request = chat("How is Rome?", tools=tools, tool_choice=choice, output={"n": 2})
    request.chat.parallel_tool_calls = False
    result = await run(engine, request, 128)
    assert result.names == {(0, 0): "get_weather", (1, 0): "get_weather"}
    assert len(set(result.ids.values())) == 2
    assert all(json.loads(arguments).keys() == {"city"} for arguments in result.arguments.values())
    assert {finish.reason for finish in result.finishes.values()} == {
        generate_pb2.FINISH_REASON_TOOL_CALLS
    }


async def test_tool_choice_none_generates_text(engine: TextEngine) -> None:
    tools = [{"name": "get_weather", "parameters_json": _WEATHER}]
    choice = {"mode": chat_pb2.ToolChoice.MODE_NONE}
    result = await run(
        engine, chat("What is the capital of France?", tools=tools, tool_choice=choice)
    )
    assert "Paris" in result.texts[0]
    assert not result.names
    assert result.plain > 1, "plain text skips the tool parser"


async def test_history_with_a_tool_result_is_accepted(engine: TextEngine) -> None:
    request = chat("What is the weather in Paris?")
    request.chat.messages.add(role=chat_pb2.ROLE_ASSISTANT).tool_calls.add(
        id="call_1", name="get_weather", arguments='{"city": "Paris"}'
    )
    request.chat.messages.add(
        role=chat_pb2.ROLE_TOOL, tool_call_id="call_1", parts=[{"text": "Sunny, 21 degrees"}]
    )
    assert (await run(engine, request, 16)).texts[0]


def _tokens(engine: Any, text: str) -> list[int]:
    """The tokens that begin the text, one for each way to begin it."""
    tokenizer = engine._started()[0].get_tokenizer()
    return sorted({tokenizer.encode(text[:end], add_special_tokens=False)[0] for end in (1, 2, 9)})


_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
_TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


async def test_tool_calls_with_automatic_choice_are_returned_and_streamed(
    http: ClientSession,
) -> None:
    functions = [{"name": "get_weather"}, {"name": "get_time"}]
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Weather and time?"}],
        "tools": [{"type": "function", "function": function} for function in functions],
        "structured_outputs": {"grammar": f"root ::= {json.dumps(f'Well:{_CALL}{_TIME}')}"},
    }
    async with http.post("/v1/chat/completions", json=body) as response:
        (choice,) = (await response.json())["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Well:"
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [call["name"] for call in calls] == ["get_weather", "get_time"]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Rome"}, {}]

    async with http.post("/v1/chat/completions", json=body | {"stream": True}) as response:
        events = [line[6:] async for line in response.content if line.startswith(b"data: {")]
    streamed: dict[int, str] = {}
    for event in events:
        delta = json.loads(event)["choices"][0]["delta"]
        for piece in delta.get("tool_calls", ()):
            assert (piece["index"] in streamed) != ("id" in piece)
            assert ("id" in piece) == ("type" in piece) == ("name" in piece["function"])
            said = streamed.get(piece["index"], "")
            streamed[piece["index"]] = said + piece["function"]["arguments"]
    assert list(streamed.values()) == [call["arguments"] for call in calls]


@pytest.mark.parametrize("calls", [True, False])
async def test_output_follows_either_the_strict_tool_or_the_response_format(
    engine: TextEngine, calls: bool
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    tools = [{"name": "get_weather", "parameters_json": _WEATHER, "strict": True}]
    request = chat("JSON", tools=tools, constraint={"json_schema": json.dumps(schema)})
    for token in _tokens(engine, "<tool_call>" if calls else "{"):
        request.sampling.logit_bias[token] = 50
    result = await run(engine, request, 96)
    assert bool(result.names) == calls
    if calls:
        assert json.loads(result.arguments[0, 0]).keys() == {"city"}
        assert not result.texts.get(0)
    else:
        assert json.loads(result.texts[0]) == {"a": "x"}


async def test_strict_tool_schema_that_no_grammar_can_express_is_refused(
    engine: TextEngine,
) -> None:
    values = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    parameters = {"type": "object", "properties": {"a": values}, "required": ["a"]}
    tools = [{"name": "f", "parameters_json": json.dumps(parameters), "strict": True}]
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, chat("Hi", tools=tools))
    assert refusal.value.reason == "invalid_function_parameters"
    assert refusal.value.param == "tools[0].function.parameters"
    tools[0]["strict"] = False
    assert (await prepare(engine, chat("Hi", tools=tools))).prompt_tokens
