"""Pydantic AI's agents on its model class for chat completions."""

import asyncio
import os
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryContent,
    Embedder,
    ModelHTTPError,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    ToolOutput,
)
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63"
    "6460f85f0f0002870180eb47ba920000000049454e44ae426082"
)


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def get_time(city: str) -> str:
    """The time in a city."""
    return f"noon in {city}"


def provider() -> OpenAIProvider:
    """A provider with connections of its own, because each test may run another event loop."""
    url = os.environ["ISTHMUS_URL"] + "/v1"
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    return OpenAIProvider(openai_client=client)


def agent_of(**options: Any) -> Agent[None, Any]:
    return Agent(OpenAIChatModel("gpt-4o-mini", provider=provider()), **options)


def test_plain_answer_has_text_and_usage() -> None:
    result = agent_of(instructions="Be brief.").run_sync(QUESTION)
    assert result.output == ANSWER
    assert result.usage.output_tokens == 6


def test_plain_conversation_goes_on_with_its_history() -> None:
    agent = agent_of(system_prompt="Be brief.")
    first = agent.run_sync(QUESTION)
    second = agent.run_sync("And again?", message_history=first.all_messages())
    assert second.output == ANSWER


def test_plain_error_has_its_status() -> None:
    agent = agent_of(model_settings={"temperature": 9})
    with pytest.raises(ModelHTTPError) as caught:
        agent.run_sync(QUESTION)
    assert caught.value.status_code == 400


def test_streamed_answer_is_the_plain_text_with_usage() -> None:
    async def stream() -> tuple[str, int]:
        async with agent_of().run_stream(QUESTION) as result:
            text = "".join([piece async for piece in result.stream_text(delta=True)])
            return text, result.usage.output_tokens

    assert asyncio.run(stream()) == (ANSWER, 6)


@pytest.mark.parametrize("parallel", [True, False])
def test_tools_make_a_round_trip(parallel: bool) -> None:
    agent = agent_of(
        tools=[get_weather, get_time], model_settings={"parallel_tool_calls": parallel}
    )
    result = agent.run_sync("Use get_weather and get_time with city = Rome.")
    assert result.output == "The tools returned: sunny in Rome, noon in Rome"
    assert result.usage.tool_calls == 2
    assert result.usage.requests == (2 if parallel else 3)


def test_tools_make_a_round_trip_in_a_stream() -> None:
    async def stream() -> str:
        agent = agent_of(tools=[get_weather])
        async with agent.run_stream("Use get_weather with city = Rome.") as result:
            return await result.get_output()

    assert asyncio.run(stream()) == "The tools returned: sunny in Rome"


def test_tools_may_ask_for_another_call() -> None:
    agent = agent_of()
    seen = []

    @agent.tool_plain
    def find(city: str) -> str:
        seen.append(city)
        if city != "Rome":
            raise ModelRetry("Use find with city = Rome.")
        return "found"

    assert agent.run_sync("Use find with city = Roma.").output.startswith("The tools returned")
    assert seen[0] == "Roma"


@pytest.mark.parametrize("form", [City, ToolOutput, NativeOutput, PromptedOutput])
@pytest.mark.parametrize("with_tool", [False, True])
def test_structured_answer_of_a_class(form: type, with_tool: bool) -> None:
    output = City if form is City else form(City)
    agent = agent_of(output_type=output, tools=[get_weather] if with_tool else [])
    wish = "Use get_weather. " if with_tool else ""
    result = agent.run_sync(f"{wish}city = Rome, inhabitants = 42")
    assert result.output == City(city="Rome", inhabitants=42)
    assert result.usage.tool_calls == int(with_tool)


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput, PromptedOutput])
def test_structured_answer_is_streamed(form: type) -> None:
    async def stream() -> City:
        agent = agent_of(output_type=form(City))
        async with agent.run_stream("city = Rome, inhabitants = 42") as result:
            return [piece async for piece in result.stream_output()][-1]

    assert asyncio.run(stream()) == City(city="Rome", inhabitants=42)


def test_structured_answer_is_one_of_several_classes() -> None:
    class River(BaseModel):
        length: float

    agent = agent_of(output_type=[City, River])
    result = agent.run_sync("Use final_result_River with length = 2.5")
    assert result.output == River(length=2.5)


def test_structured_answer_is_corrected() -> None:
    agent = agent_of(output_type=NativeOutput(City))

    @agent.output_validator
    def in_capitals(output: City) -> City:
        if not output.city.isupper():
            raise ModelRetry("Write it in capitals: city = ROME")
        return output

    assert agent.run_sync("city = Rome, inhabitants = 42").output.city == "ROME"


def test_embeddings_have_one_vector_an_input() -> None:
    model = OpenAIEmbeddingModel("text-embedding-3-small", provider=provider())
    result = Embedder(model).embed_documents_sync(["a cat", "a dog"])
    assert [len(row) for row in result.embeddings] == [8, 8]


def test_vision_takes_a_picture() -> None:
    picture = BinaryContent(data=PIXEL, media_type="image/png")
    assert agent_of().run_sync(["What is this?", picture]).output == "I see 1 of image/png."
