"""Anthropic's SDK for Python, which speaks /v1/messages."""

import asyncio
import os

import anthropic
import pytest
from pydantic import BaseModel

SETTINGS = {"base_url": os.environ["ISTHMUS_URL"], "max_retries": 0}
BODY = {"model": "gpt-4o-mini", "max_tokens": 100}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WISH = [{"role": "user", "content": "Use get_weather with city = Rome."}]
ANSWER = "The capital of France is Paris."
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)


@pytest.fixture
def client():
    with anthropic.Anthropic(api_key="none", **SETTINGS) as made:
        yield made


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


def test_plain_answer_has_text_and_usage(client) -> None:
    answer = client.messages.create(messages=QUESTION, **BODY)
    assert answer.content[0].text == ANSWER
    assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 6)


def test_plain_answer_with_a_bearer_token() -> None:
    with anthropic.Anthropic(auth_token="none", **SETTINGS) as client:
        assert client.messages.create(messages=QUESTION, **BODY).content[0].text == ANSWER


def test_plain_async_answer_has_text() -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(api_key="none", **SETTINGS) as client:
            return (await client.messages.create(messages=QUESTION, **BODY)).content[0].text

    assert asyncio.run(ask()) == ANSWER


def test_plain_beta_answer_with_a_cached_system_prompt(client) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = client.beta.messages.create(
        messages=QUESTION, system=system, betas=["context-management-2025-06-27"], **BODY
    )
    assert answer.content[0].text == ANSWER


def test_plain_conversation_goes_on_with_the_answer_itself(client) -> None:
    first = client.messages.create(messages=QUESTION, **BODY)
    for turn in (first.to_param(), {"role": "assistant", "content": first.content}):
        messages = [*QUESTION, turn, {"role": "user", "content": "And again?"}]
        assert client.messages.create(messages=messages, **BODY).content[0].text == ANSWER


def test_plain_errors_have_anthropics_types(client) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(messages=QUESTION, **BODY | {"max_tokens": 0})
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.messages.create(messages=QUESTION, **BODY | {"model": "nobody"})
    assert raised.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(messages=[{"role": "user", "content": "word " * 9000}], **BODY)


def test_streamed_answer_is_the_plain_text(client) -> None:
    with client.messages.stream(messages=QUESTION, **BODY) as stream:
        assert "".join(stream.text_stream) == ANSWER
        last = stream.get_final_message()
    assert (last.stop_reason, last.usage.output_tokens) == ("end_turn", 6)


def test_streamed_events_begin_and_end_as_documented(client) -> None:
    kinds = [event.type for event in client.messages.create(messages=QUESTION, stream=True, **BODY)]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("choice", [None, {"type": "auto"}, {"type": "any"}])
def test_tools_make_a_round_trip(client, choice) -> None:
    options = {"tools": [WEATHER], **({"tool_choice": choice} if choice else {})}
    asked = client.messages.create(messages=WISH, **options, **BODY)
    [use] = asked.content
    assert (asked.stop_reason, use.name, use.input) == (
        "tool_use",
        "get_weather",
        {"city": "Rome"},
    )
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns = [*WISH, asked.to_param(), {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=turns, tools=[WEATHER], **BODY)
    assert answer.content[0].text == "The tools returned: sunny"


def test_tools_are_streamed(client) -> None:
    with client.messages.stream(messages=WISH, tools=[WEATHER], **BODY) as stream:
        [use] = stream.get_final_message().content
    assert (use.name, use.input) == ("get_weather", {"city": "Rome"})


@pytest.mark.parametrize("options", [{}, {"thread": False}])
def test_tools_are_run_by_the_runner(client, options) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    runner = client.beta.messages.tool_runner(messages=WISH, tools=[get_weather], **options, **BODY)
    assert runner.until_done().content[0].text == "The tools returned: sunny in Rome"


def test_structured_answer_of_a_class(client) -> None:
    messages = [{"role": "user", "content": "city = Rome, inhabitants = 42"}]
    answer = client.messages.parse(messages=messages, output_format=City, **BODY)
    assert answer.parsed_output == City(city="Rome", inhabitants=42)


def test_structured_answer_is_streamed(client) -> None:
    messages = [{"role": "user", "content": "city = Rome, inhabitants = 42"}]
    with client.messages.stream(messages=messages, output_format=City, **BODY) as stream:
        last = stream.get_final_message()
    assert last.parsed_output == City(city="Rome", inhabitants=42)


def test_vision_takes_a_picture(client) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    blocks = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
    answer = client.messages.create(messages=[{"role": "user", "content": blocks}], **BODY)
    assert answer.content[0].text == "I see 1 of image/png."
