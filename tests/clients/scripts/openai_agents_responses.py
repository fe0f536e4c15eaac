"""The OpenAI Agents SDK on its default model class, which uses /v1/responses."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    WebSearchTool,
    handoff,
    set_default_openai_client,
)
from openai_agents_chat import ANSWER, PIXEL, QUESTION, URL, City, get_weather
from openai_agents_chat import run as run_with

run = partial(run_with, model_class=OpenAIResponsesModel)


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
        max_tokens=50,
        store=False,
        metadata={"a": "b"},
        extra_body={"seed": 1},
        verbosity="low",
        reasoning={"effort": "low", "summary": "auto"},
        response_include=["reasoning.encrypted_content"],
        prompt_cache_retention="24h",
        truncation="disabled",
        top_logprobs=2,
        parallel_tool_calls=None,
    )
    result, _ = run(QUESTION, model_settings=settings)
    assert result.final_output == ANSWER


def test_plain_error_has_its_parameter() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        run(QUESTION, model_settings=ModelSettings(temperature=9))
    assert caught.value.param == "temperature"


def test_streamed_answer_is_the_plain_text_with_usage() -> None:
    result, events = run(QUESTION, streamed=True)
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
            model = OpenAIResponsesModel("gpt-4o-mini", client)
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


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_that_only_openai_runs_are_left_out(streamed: bool) -> None:
    result, _ = run(
        "Use get_weather with city = Rome.",
        streamed=streamed,
        tools=[WebSearchTool(), get_weather],
    )
    assert result.final_output == "The tools returned: sunny in Rome"


@pytest.mark.parametrize("streamed", [False, True])
def test_plain_answer_has_its_reasoning(streamed: bool) -> None:
    result, _ = run(f"{QUESTION} think first", streamed=streamed)
    thought, message = result.new_items
    assert thought.raw_item.content[0].text == "The user asks about France."
    assert message.raw_item.content[0].text == ANSWER


def test_plain_default_model_is_that_of_responses() -> None:
    async def go() -> str:
        async with openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            set_default_openai_client(client, use_for_tracing=False)
            agent = Agent(name="Ada", model="gpt-4o-mini")
            result = await Runner.run(agent, QUESTION, run_config=RunConfig(tracing_disabled=True))
            assert result.raw_responses[0].response_id.startswith("resp_")
            return str(result.final_output)

    assert asyncio.run(go()) == ANSWER


def test_vision_takes_a_picture() -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    result, _ = run([{"role": "user", "content": parts}])
    assert result.final_output == "I see 1 of image/png."
