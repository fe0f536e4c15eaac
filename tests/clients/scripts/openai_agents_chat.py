"""The OpenAI Agents SDK on its model class for chat completions."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    function_tool,
    handoff,
)
from pydantic import BaseModel

URL = os.environ["ISTHMUS_URL"] + "/v1"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def run(
    question: Any,
    *,
    streamed: bool = False,
    model_class: type[Model] = OpenAIChatCompletionsModel,
    **options: Any,
) -> tuple[Any, list[Any]]:
    """The result of an agent's run, and the raw events of its stream."""

    async def go() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            model = model_class("gpt-4o-mini", client)
            agent = Agent(name="Ada", instructions="Be brief.", model=model, **options)
            config = RunConfig(tracing_disabled=True)
            if not streamed:
                return await Runner.run(agent, question, run_config=config), []
            result = Runner.run_streamed(agent, question, run_config=config)
            events = [event async for event in result.stream_events()]
            return result, [each.data for each in events if each.type == "raw_response_event"]

    return asyncio.run(go())


def text_of(events: list[Any]) -> str:
    return "".join(each.delta for each in events if each.type == "response.output_text.delta")


def test_plain_answer_has_text_and_usage() -> None:
    result, _ = run(QUESTION)
    assert result.final_output == ANSWER
    assert result.context_wrapper.usage.output_tokens == 6


def test_plain_conversation_goes_on_with_its_items() -> None:
    first, _ = run(QUESTION)
    again, _ = run([*first.to_input_list(), {"role": "user", "content": "And again?"}])
    assert again.final_output == ANSWER


def test_plain_answer_with_settings() -> None:
    settings = ModelSettings(
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        max_tokens=50,
        store=False,
        include_usage=True,
        metadata={"a": "b"},
        extra_body={"seed": 1},
        verbosity="low",
        reasoning={"effort": "low"},
        parallel_tool_calls=None,
    )
    result, _ = run(QUESTION, model_settings=settings)
    assert result.final_output == ANSWER


def test_plain_error_has_its_parameter() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        run(QUESTION, model_settings=ModelSettings(temperature=9))
    assert caught.value.param == "temperature"


def test_streamed_answer_is_the_plain_text_with_usage() -> None:
    # With a base URL other than OpenAI's the SDK asks for usage only if it is told to.
    settings = ModelSettings(include_usage=True)
    result, events = run(QUESTION, streamed=True, model_settings=settings)
    assert text_of(events) == ANSWER == result.final_output
    assert result.context_wrapper.usage.output_tokens == 6


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", [None, "auto", "required", "get_weather"])
@pytest.mark.parametrize("parallel", [None, False])
def test_tools_make_a_round_trip(streamed: bool, choice: str | None, parallel: bool | None) -> None:
    settings = ModelSettings(tool_choice=choice, parallel_tool_calls=parallel)
    result, _ = run(
        "Use get_weather with city = Rome.",
        streamed=streamed,
        tools=[get_weather],
        model_settings=settings,
    )
    assert result.final_output == "The tools returned: sunny in Rome"


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_hand_over_to_another_agent(streamed: bool) -> None:
    async def go() -> str:
        async with openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            model = OpenAIChatCompletionsModel("gpt-4o-mini", client)
            other = Agent(name="Bob", model=model)
            agent = Agent(name="Ada", model=model, handoffs=[handoff(other)])
            question = "Use transfer_to_bob."
            config = RunConfig(tracing_disabled=True)
            if not streamed:
                result: Any = await Runner.run(agent, question, run_config=config)
            else:
                result = Runner.run_streamed(agent, question, run_config=config)
                async for _ in result.stream_events():
                    pass
            return result.last_agent.name

    assert asyncio.run(go()) == "Bob"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("tools", [[], [get_weather]])
def test_structured_answer_of_a_class(streamed: bool, tools: list[Callable[..., Any]]) -> None:
    wish = "Use get_weather. " if tools else ""
    result, _ = run(
        f"{wish}city = Rome, inhabitants = 42", streamed=streamed, tools=tools, output_type=City
    )
    assert result.final_output == City(city="Rome", inhabitants=42)


def test_vision_takes_a_picture() -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    result, _ = run([{"role": "user", "content": parts}])
    assert result.final_output == "I see 1 of image/png."
