"""The seven cases of Open Responses' compliance suite, against the types of its specification.

For a server with a model that does not follow a wish, RESPONSES_BODY has further members of each
body as JSON, and RESPONSES_TOOL_CHOICE the tool choice of the cases with a tool.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import openresponses_types as spec
import pytest
from pydantic import BaseModel

URL = os.environ["ISTHMUS_URL"] + "/v1/responses"
KEY = os.environ["OPENAI_API_KEY"]
BODY = {"model": "gpt-4o-mini"} | json.loads(os.environ.get("RESPONSES_BODY", "{}"))
TOOL_CHOICE = os.environ.get("RESPONSES_TOOL_CHOICE", "auto")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
# The specification's type of each event, by its name.
EVENTS: dict[str, type[BaseModel]] = {
    "response.created": spec.ResponseCreatedStreamingEvent,
    "response.in_progress": spec.ResponseInProgressStreamingEvent,
    "response.completed": spec.ResponseCompletedStreamingEvent,
    "response.output_item.added": spec.ResponseOutputItemAddedStreamingEvent,
    "response.output_item.done": spec.ResponseOutputItemDoneStreamingEvent,
    "response.content_part.added": spec.ResponseContentPartAddedStreamingEvent,
    "response.content_part.done": spec.ResponseContentPartDoneStreamingEvent,
    "response.output_text.delta": spec.ResponseOutputTextDeltaStreamingEvent,
    "response.output_text.done": spec.ResponseOutputTextDoneStreamingEvent,
    "response.function_call_arguments.delta": spec.ResponseFunctionCallArgumentsDeltaStreamingEvent,
    "response.function_call_arguments.done": spec.ResponseFunctionCallArgumentsDoneStreamingEvent,
}


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


def response(http: httpx.Client, **body: Any) -> dict[str, Any]:
    """A completed response with output, which fits the specification."""
    answer = http.post(URL, json={**BODY, **body})
    assert answer.status_code == 200, answer.text
    return checked(answer.text)


def checked(document: str) -> dict[str, Any]:
    spec.ResponseResource.model_validate_json(document)
    found: dict[str, Any] = json.loads(document)
    assert found["status"] == "completed"
    assert found["output"]
    return found


def streamed(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of which fits the specification."""
    answer = http.post(URL, json={**BODY, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    *events, last, _ = answer.text.split("\n\n")
    assert last == "data: [DONE]"
    found = []
    for event in events:
        name, _, data = event.removeprefix("event: ").partition("\ndata: ")
        EVENTS[name].model_validate_json(data)
        found.append(json.loads(data))
        assert found[-1]["type"] == name
    checked(json.dumps(found[-1]["response"]))
    return found


def types(output: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in output]


def test_plain_text_response(http: httpx.Client) -> None:
    answer = response(http, input=[user("Say hello in exactly 3 words.")])
    assert types(answer["output"]) == ["message"]


def test_streamed_text_response(http: httpx.Client) -> None:
    events = streamed(http, input=[user("Count from 1 to 5.")])
    assert len(events) > 5


def test_plain_response_with_a_system_prompt(http: httpx.Client) -> None:
    system = {"type": "message", "role": "system", "content": "You are a pirate."}
    response(http, input=[system, user("Say hello.")])


def test_tools_are_called(http: httpx.Client) -> None:
    wish = user("Use get_weather with location = Francisco.")
    answer = response(http, input=[wish], tools=[WEATHER], tool_choice=TOOL_CHOICE)
    assert types(answer["output"]) == ["function_call"]


def test_tools_are_called_in_a_stream(http: httpx.Client) -> None:
    wish = user("Use get_weather with location = Francisco.")
    events = streamed(http, input=[wish], tools=[WEATHER], tool_choice=TOOL_CHOICE)
    names = [event["type"] for event in events]
    assert "response.function_call_arguments.delta" in names
    assert "response.function_call_arguments.done" in names
    assert types(events[-1]["response"]["output"]) == ["function_call"]


def test_vision_takes_an_image(http: httpx.Client) -> None:
    parts = [
        {"type": "input_text", "text": "What do you see in this image?"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    response(http, input=[user(parts)])


def test_plain_conversation_of_several_turns(http: httpx.Client) -> None:
    said = {"type": "message", "role": "assistant", "content": "Hello Alice! Nice to meet you."}
    response(http, input=[user("My name is Alice."), said, user("What is my name?")])
