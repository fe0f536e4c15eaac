"""POST /v1/responses over HTTP, mostly with the official Python SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from inference.config import ENGINES, ModelConfig
from tests.clients.good_model import ANSWER, REASONING
from tests.conftest import TEXT, Stack, StartStack, eventually

PATH = "/v1/responses"
QUESTION = "What is the capital of France?"
WISH = "Use get_weather with city = Rome."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
FILES = {
    "type": "namespace",
    "name": "files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read", "parameters": WEATHER["parameters"]}],
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


@pytest.fixture
async def good(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A stack whose model calls tools and thinks."""
    monkeypatch.setitem(ENGINES, "scripted-good", ("tests.clients.good_model", "GoodModel"))
    return await start_stack(ModelConfig(id="good", engine="scripted-good"))


async def plain(stack: Stack, **body: Any) -> dict[str, Any]:
    """The response object, which the SDK's types accept as it is."""
    model = stack.server.registry.models[0].config.id
    async with stack.http.post(PATH, json={"model": model, **body}) as response:
        text = await response.text()
        assert response.status == 200, text
    Response.model_validate_json(text, strict=True)
    document: dict[str, Any] = json.loads(text)
    return document


async def events(stack: Stack, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose order and numbers are checked."""
    model = stack.server.registry.models[0].config.id
    async with stack.http.post(PATH, json={"model": model, "stream": True, **body}) as response:
        text = await response.text()
        assert response.status == 200, text
        assert response.content_type == "text/event-stream"
    *named, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    found = []
    for event in named:
        name, _, data = event.removeprefix("event: ").partition("\ndata: ")
        found.append(json.loads(data))
        EVENT.validate_json(data, strict=True)
        assert found[-1]["type"] == name
    check_order(found)
    return found


# The events that an item has between output_item.added and output_item.done.
INSIDE = {
    "message": (
        ["content_part.added"],
        "output_text.delta",
        ["output_text.done", "content_part.done"],
    ),
    "reasoning": (
        ["content_part.added"],
        "reasoning_text.delta",
        ["reasoning_text.done", "content_part.done"],
    ),
    "function_call": ([], "function_call_arguments.delta", ["function_call_arguments.done"]),
    "custom_tool_call": ([], "custom_tool_call_input.delta", ["custom_tool_call_input.done"]),
}


def check_order(found: list[dict[str, Any]]) -> None:
    """Checks numbers, order, places and ids; and that the events add up to the final response."""
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    names = [event["type"].removeprefix("response.") for event in found]
    assert names[:2] == ["created", "in_progress"]
    assert names[-1] in ("completed", "incomplete", "failed")
    final = found[-1]["response"]
    assert {event["response"]["id"] for event in (*found[:2], found[-1])} == {final["id"]}
    at = 2
    for index, item in enumerate(final["output"]):
        if names[-1] == "failed" and item["status"] == "incomplete":
            return
        end = names.index("output_item.done", at)
        before, delta, after = INSIDE[item["type"]]
        inside = names[at + 1 : end]
        deltas = inside[len(before) : len(inside) - len(after)]
        assert names[at] == "output_item.added"
        assert inside == [*before, *deltas, *after]
        assert set(deltas) <= {delta}
        assert found[end]["item"] == item
        begun = found[at]["item"]
        assert {begun["id"], item["id"]} == {item["id"]}
        assert begun["status"] == "in_progress"
        assert begun.get("name") == item.get("name")
        assert begun.get("role") == item.get("role")
        for event in found[at : end + 1]:
            assert event["output_index"] == index
            assert event.get("item_id", item["id"]) == item["id"]
            assert event.get("content_index", 0) == 0
        whole = "".join(event["delta"] for event in found[at:end] if "delta" in event)
        assert whole == text_of(item)
        at = end + 1
    assert at == len(found) - 1


def text_of(item: dict[str, Any]) -> str:
    match item["type"]:
        case "function_call":
            return str(item["arguments"])
        case "custom_tool_call":
            return str(item["input"])
    return "".join(part["text"] for part in item["content"])


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


CASES: list[dict[str, Any]] = [
    {"input": QUESTION},
    {"input": f"{QUESTION} think first", "reasoning": {"effort": "low", "summary": "auto"}},
    {"input": QUESTION, "max_output_tokens": 3},
    {"input": WISH, "tools": [WEATHER]},
    {"input": f"{WISH} think first", "tools": [WEATHER], "max_output_tokens": 6},
    {"input": "Use apply_patch with input = text.", "tools": [PATCH]},
    {"input": "Use files__read with city = Rome.", "tools": [FILES, {"type": "web_search"}]},
    {"input": "Use get_weather and apply_patch.", "tools": [WEATHER, PATCH]},
]


@pytest.mark.parametrize("body", CASES, ids=lambda body: body["input"][:40])
async def test_plain_response_equals_the_streamed_one(good: Stack, body: dict[str, Any]) -> None:
    whole = await plain(good, **body)
    final = (await events(good, **body))[-1]["response"]
    assert final["status"] == whole["status"]
    assert without_ids(final["output"]) == without_ids(whole["output"])
    assert final["usage"] == whole["usage"]
    own = ("id", "created_at", "completed_at", "output")
    assert {k: v for k, v in final.items() if k not in own} == {
        k: v for k, v in whole.items() if k not in own
    }
    ids = [item["id"] for item in whole["output"]]
    assert len(ids) == len(set(ids))


async def test_text_of_a_response_has_usage(stack: Stack) -> None:
    response = await stack.openai.responses.create(
        model="gpt-4", input="hello there", max_output_tokens=3
    )
    assert response.output_text == "w0 w1 w2 "
    assert response.id.startswith("resp_")
    assert response.model == "gpt-4"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 3)
    assert response.usage.total_tokens == 5
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output if item.type == "message"] == ["incomplete"]


async def test_streamed_response_is_read_by_the_sdk(good: Stack) -> None:
    async with good.openai.responses.stream(model="good", input=QUESTION) as stream:
        seen = [event async for event in stream]
        final = await stream.get_final_response()
    deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER == final.output_text
    assert deltas[0].startswith("The")
    assert final.status == "completed"


@pytest.mark.parametrize("streamed", [False, True])
async def test_text_is_parsed_into_a_class(good: Stack, streamed: bool) -> None:
    asked: dict[str, Any] = {"model": "good", "input": "city = Rome, inhabitants = 42"}
    if streamed:
        async with good.openai.responses.stream(**asked, text_format=City) as stream:
            response = await stream.get_final_response()
    else:
        response = await good.openai.responses.parse(**asked, text_format=City)
    assert response.output_parsed == City(city="Rome", inhabitants=42)


@pytest.mark.parametrize("streamed", [False, True])
async def test_function_makes_a_round_trip_with_the_items_as_they_are(
    good: Stack, streamed: bool
) -> None:
    conversation: list[Any] = [{"role": "user", "content": f"{WISH} think first"}]
    for turn in range(2):
        asked: dict[str, Any] = {"model": "good", "input": conversation, "tools": [WEATHER]}
        if streamed:
            async with good.openai.responses.stream(**asked) as stream:
                response: Any = await stream.get_final_response()
        else:
            response = await good.openai.responses.create(**asked)
        # As users do it, with every null that the SDK adds.
        conversation += [item.model_dump(mode="json") for item in response.output]
        if turn == 0:
            thought, call = response.output
            assert thought.content[0].text == REASONING
            assert json.loads(call.arguments) == {"city": "Rome"}
            assert call.id != call.call_id
            conversation.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
            )
    assert response.output_text == "The tools returned: sunny"


async def test_custom_tool_and_namespace_make_a_round_trip(good: Stack) -> None:
    tools = [PATCH, FILES, {"type": "web_search"}]
    asked = "Use apply_patch with input = text. Use files__read with city = Rome."
    first = await plain(good, input=asked, tools=tools)
    patch, read = first["output"]
    assert (patch["type"], patch["name"], patch["input"]) == (
        "custom_tool_call", "apply_patch", "text",
    )  # fmt: skip
    assert (read["namespace"], read["name"]) == ("files", "read")
    assert [tool["type"] for tool in first["tools"]] == ["custom", "namespace"]
    outputs = [
        {"type": "custom_tool_call_output", "call_id": patch["call_id"], "output": "done"},
        {"type": "function_call_output", "call_id": read["call_id"], "output": "text"},
    ]
    again = await plain(
        good, input=[{"role": "user", "content": asked}, patch, read, *outputs], tools=tools
    )
    assert text_of(again["output"][0]) == "The tools returned: done, text"


async def test_forced_and_allowed_tools_are_called(good: Stack) -> None:
    for choice in (
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ):
        response = await plain(
            good, input="city = Rome", tools=[WEATHER, PATCH], tool_choice=choice
        )
        (call,) = response["output"]
        assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Rome"}')
        assert response["tool_choice"] == choice


async def test_image_of_a_user_and_of_a_tool_reach_the_model(good: Stack) -> None:
    image = {"type": "input_image", "image_url": PIXEL, "detail": "auto"}
    seen = await plain(good, input=[{"role": "user", "content": [image]}])
    assert text_of(seen["output"][0]) == "I see 1 of image/png."
    call = {"type": "function_call", "call_id": "c", "name": "view", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    shown = await plain(good, input=[{"role": "user", "content": "Look."}, call, output])
    assert text_of(shown["output"][0]) == "I see 1 of image/png."


async def test_log_probabilities_are_in_the_text_and_the_deltas(stack: Stack) -> None:
    wish = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1,
            "max_output_tokens": 2}  # fmt: skip
    whole = await plain(stack, **wish)
    (part,) = whole["output"][0]["content"]
    assert [token["token"] for token in part["logprobs"]] == ["w0 ", "w1 "]
    assert [len(token["top_logprobs"]) for token in part["logprobs"]] == [1, 1]
    found = await events(stack, **wish)
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [token for event in deltas for token in event["logprobs"]] == part["logprobs"]


async def test_failure_before_the_first_output_is_an_http_error(stack: Stack) -> None:
    with pytest.raises(openai.InternalServerError):
        await stack.openai.responses.create(
            model="scripted", input='{"fail": "start"}', stream=True
        )
    with pytest.raises(openai.NotFoundError) as unknown:
        await stack.openai.responses.create(model="nope", input="x", stream=True)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await stack.openai.responses.create(model="tiny", input="x " * 9, stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.NotFoundError) as embedding:
        await stack.openai.responses.create(model="ada", input="x")
    assert embedding.value.param == "model"
    assert "v1/responses" in embedding.value.message


async def test_failure_after_the_200_is_an_event(stack: Stack) -> None:
    found = await events(stack, input='{"fail": "mid"}')
    final = found[-1]["response"]
    assert found[-1]["type"] == "response.failed"
    assert final["status"] == "failed"
    assert final["error"]["code"] == "server_error"
    assert "canary" not in json.dumps(found)
    (item,) = final["output"]
    assert (item["status"], text_of(item)) == ("incomplete", "w0 w1 ")


async def test_deadline_after_the_200_is_an_event_with_a_known_code(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(request_seconds=0.5)
    found = await events(stack, input='{"tokens": 4000, "step_seconds": 0.01}')
    error = found[-1]["response"]["error"]
    assert error["code"] == "server_error"
    assert "time" in error["message"]


async def test_engine_stops_when_the_client_leaves(stack: Stack) -> None:
    script = '{"tokens": 4000, "step_seconds": 0.01}'
    body = {"model": "scripted", "input": script, "stream": True, "max_output_tokens": 4000}
    async with stack.http.post(PATH, json=body) as response:
        while b"output_text.delta" not in await response.content.readline():
            pass
        assert stack.engine.health().running == 1
        response.close()
    await eventually(lambda: not stack.engine.health().running)


async def test_silent_stream_has_keep_alives(start_stack: StartStack, monkeypatch: Any) -> None:
    monkeypatch.setattr("edge.exchange.runner.TICK_SECONDS", 0.05)
    stack = await start_stack(sse_keepalive_seconds=0.1, header_hold_seconds=0.05)
    body = {"model": "scripted", "input": '{"prefill_seconds": 0.5}', "stream": True}
    async with stack.http.post(PATH, json=body) as response:
        text = await response.text()
    begin, _, rest = text.partition(": keep-alive\n")
    assert begin.count("event: ") == 2
    assert ": keep-alive\n: keep-alive\n" in f": keep-alive\n{rest}"
    assert text.endswith("data: [DONE]\n\n")


async def test_affinity_key_and_operation_are_those_of_a_chat(start_stack: StartStack) -> None:
    stack = await start_stack(metrics_open=True)
    await plain(stack, input="hi", prompt_cache_key="k", max_output_tokens=1)
    async with stack.http.get("/metrics") as response:
        text = await response.text()
    counted = [line for line in text.splitlines() if "gen_ai_server_request_duration" in line]
    assert any('gen_ai_operation_name="chat"' in line and TEXT.id in line for line in counted)
    assert 'path="/v1/responses"' in text
