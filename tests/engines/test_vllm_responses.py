"""/v1/responses over HTTP, on a real model: the text and the calls are those of a chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import ClientSession

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

QUESTION = "What is the capital of France?"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


async def ask(http: ClientSession, **body: Any) -> Any:
    asked = {"model": "smollm2", "temperature": 0, "max_output_tokens": 40, **body}
    async with http.post("/v1/responses", json=asked) as response:
        answer = await response.json()
    assert response.status == 200, answer
    return answer


async def final(http: ClientSession, **body: Any) -> Any:
    """The response at the end of a stream."""
    asked = {"model": "smollm2", "temperature": 0, "max_output_tokens": 40, "stream": True, **body}
    async with http.post("/v1/responses", json=asked) as response:
        *_, last, done, _ = (await response.text()).split("\n\n")
    assert done == "data: [DONE]"
    return json.loads(last.partition("\ndata: ")[2])["response"]


async def test_text_is_that_of_the_chat(http: ClientSession) -> None:
    chat = {
        "model": "smollm2",
        "temperature": 0,
        "max_tokens": 40,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTION},
        ],
    }
    async with http.post("/v1/chat/completions", json=chat) as response:
        wanted = await response.json()
    for answer in (
        await ask(http, instructions="Be brief.", input=QUESTION),
        await final(http, instructions="Be brief.", input=[{"role": "user", "content": QUESTION}]),
    ):
        text = answer["output"][0]["content"][0]["text"]
        assert text == wanted["choices"][0]["message"]["content"]
        assert "Paris" in text
        assert answer["usage"]["input_tokens"] == wanted["usage"]["prompt_tokens"]
        assert answer["usage"]["output_tokens"] == wanted["usage"]["completion_tokens"]


@pytest.mark.parametrize("answer", [ask, final])
async def test_forced_function_and_custom_tool_are_called(http: ClientSession, answer: Any) -> None:
    tools = [
        {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True},
        {"type": "custom", "name": "say", "description": "Says one word."},
    ]
    called = await answer(
        http,
        input="What is the weather in Rome?",
        tools=tools,
        tool_choice={"type": "function", "name": "get_weather"},
    )
    (call,) = called["output"]
    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"])["city"] in ("Rome", "Oslo")
    said = await answer(
        http, input="Say hi.", tools=tools, tool_choice={"type": "custom", "name": "say"}
    )
    (call,) = said["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "say")
    assert not call["input"].startswith("{")


async def test_format_of_a_schema_is_enforced(http: ClientSession) -> None:
    form = {"type": "json_schema", "name": "place", "strict": True, "schema": WEATHER}
    answer = await ask(http, input="Name a city.", text={"format": form})
    assert json.loads(answer["output"][0]["content"][0]["text"])["city"] in ("Rome", "Oslo")


async def test_refusal_of_a_schema_names_its_place_in_the_request(http: ClientSession) -> None:
    schema = {**WEATHER, "properties": {"city": {"type": "string", "not": {"pattern": "^R"}}}}
    form = {"type": "json_schema", "name": "place", "schema": schema}
    body = {"model": "smollm2", "input": "Name a city.", "text": {"format": form}}
    async with http.post("/v1/responses", json=body) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["param"].startswith("text.format")
    assert "text.format.schema.properties.city.not" in error["message"]
    tools = [{"type": "web_search"}, {"type": "function", "name": "f", "strict": True,
             "parameters": schema}]  # fmt: skip
    async with http.post(
        "/v1/responses", json={"model": "smollm2", "input": "x", "tools": tools}
    ) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "tools[1].parameters")
