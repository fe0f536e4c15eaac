"""LiteLLM's provider "anthropic", and its own Messages API in front of chat completions."""

import asyncio
import json
import os

import litellm
import pytest
from litellm_sdk import ANSWER, PIXEL, QUESTION, WEATHER, WISH, City

URL = os.environ["ISTHMUS_URL"]
SETTINGS = {"api_base": URL, "api_key": "none", "num_retries": 0}
MODEL = "anthropic/gpt-4o-mini"


def test_plain_answer_has_text_and_usage() -> None:
    answer = litellm.completion(model=MODEL, messages=QUESTION, **SETTINGS)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("model", "base"),
    [(MODEL, URL), ("hosted_vllm/gpt-4o-mini", f"{URL}/v1")],
    ids=["own", "bridge"],
)
def test_plain_message_has_text(model: str, base: str) -> None:
    """The bridge sends it as a chat completion."""
    answer = asyncio.run(
        litellm.anthropic_messages(
            model=model, messages=QUESTION, max_tokens=50, api_base=base, api_key="none"
        )
    )
    assert answer["content"][0]["text"] == ANSWER
    assert answer["stop_reason"] == "end_turn"


def test_plain_error_is_a_bad_request() -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(model=MODEL, messages=QUESTION, temperature=1.9, **SETTINGS)


def test_plain_unknown_model_is_not_found() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="anthropic/nobody", messages=QUESTION, **SETTINGS)


def test_plain_prompt_beyond_the_context_is_told_apart() -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=MODEL, messages=long, **SETTINGS)


def test_streamed_answer_is_the_plain_text_with_usage() -> None:
    chunks = list(litellm.completion(model=MODEL, messages=QUESTION, stream=True, **SETTINGS))
    whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 6


@pytest.mark.parametrize("choice", [None, "auto", "required"])
def test_tools_make_a_round_trip(choice: str | None) -> None:
    options = {"tools": [WEATHER], **({"tool_choice": choice} if choice else {})}
    asked = litellm.completion(model=MODEL, messages=WISH, **options, **SETTINGS)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = litellm.completion(
        model=MODEL, messages=[*WISH, message, result], tools=[WEATHER], **SETTINGS
    )
    assert answer.choices[0].message.content == "The tools returned: sunny"


def test_tools_are_streamed() -> None:
    chunks = list(
        litellm.completion(model=MODEL, messages=WISH, tools=[WEATHER], stream=True, **SETTINGS)
    )
    [call] = litellm.stream_chunk_builder(chunks, messages=WISH).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Rome"},
    )


def test_structured_answer_of_a_class() -> None:
    answer = litellm.completion(
        model=MODEL,
        messages=[{"role": "user", "content": "city = Rome, inhabitants = 42"}],
        response_format=City,
        **SETTINGS,
    )
    content = answer.choices[0].message.content
    assert City.model_validate_json(content) == City(city="Rome", inhabitants=42)


def test_vision_takes_a_picture() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    answer = litellm.completion(
        model=MODEL, messages=[{"role": "user", "content": parts}], **SETTINGS
    )
    assert answer.choices[0].message.content == "I see 1 of image/png."
