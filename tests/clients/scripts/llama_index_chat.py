"""LlamaIndex's classes for servers that are like OpenAI, its agents and an index."""

import asyncio
import os
from typing import Any

import openai
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SETTINGS = {"api_base": os.environ["ISTHMUS_URL"] + "/v1", "api_key": "none", "max_retries": 0}
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
WISH = "Use get_weather with city = Rome."
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


WEATHER = FunctionTool.from_defaults(get_weather)
TIME = FunctionTool.from_defaults(get_time)


def model(**options: Any) -> OpenAILike:
    return OpenAILike(
        **SETTINGS,
        model="gpt-4o-mini",
        is_chat_model=True,
        is_function_calling_model=True,
        **options,
    )


def vectors(**options: Any) -> OpenAILikeEmbedding:
    return OpenAILikeEmbedding(**SETTINGS, model_name="text-embedding-3-small", **options)


def test_plain_answer_has_text_and_usage() -> None:
    answer = model().chat([ChatMessage(role="user", content=QUESTION)])
    assert answer.message.content == ANSWER
    assert answer.raw.usage.completion_tokens == 6


def test_plain_prompt_has_text() -> None:
    assert model().complete(QUESTION).text == ANSWER
    assert asyncio.run(model().acomplete(QUESTION)).text == ANSWER


def test_plain_completion_has_text() -> None:
    old = OpenAILike(**SETTINGS, model="gpt-3.5-turbo-instruct", is_chat_model=False)
    assert old.complete("France", formatted=True).text == ANSWER


def test_plain_answer_of_the_class_for_openai() -> None:
    assert OpenAI(**SETTINGS, model="gpt-4o-mini").complete(QUESTION).text == ANSWER


def test_plain_conversation_goes_on_with_the_answer_itself() -> None:
    asked = ChatMessage(role="user", content=QUESTION)
    first = model().chat([asked]).message
    assert model().chat([asked, first, asked]).message.content == ANSWER


def test_plain_error_has_its_parameter() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        model(additional_kwargs={"top_p": 9}).complete(QUESTION)
    assert caught.value.param == "top_p"


def test_streamed_answer_is_the_plain_text() -> None:
    chunks = list(model().stream_chat([ChatMessage(role="user", content=QUESTION)]))
    assert len(chunks) > 3
    assert chunks[-1].message.content == ANSWER


def test_streamed_async_answer_is_the_plain_text() -> None:
    async def stream() -> str:
        return "".join([chunk.delta async for chunk in await model().astream_complete(QUESTION)])

    assert asyncio.run(stream()) == ANSWER


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_tools_make_a_round_trip(required: bool, parallel: bool) -> None:
    llm, asked = model(), ChatMessage(role="user", content=WISH)
    options = {"tool_required": required, "allow_parallel_tool_calls": parallel}
    answer = llm.chat_with_tools([WEATHER], chat_history=[asked], **options)
    [call] = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Rome"})
    result = ChatMessage(
        role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id}
    )
    last = llm.chat_with_tools([WEATHER], chat_history=[asked, answer.message, result])
    assert last.message.content == "The tools returned: sunny"


def test_tools_are_streamed() -> None:
    llm = model()
    asked = ChatMessage(role="user", content="Use get_weather and get_time with city = Rome.")
    options = {"allow_parallel_tool_calls": True}
    chunks = list(llm.stream_chat_with_tools([WEATHER, TIME], chat_history=[asked], **options))
    calls = llm.get_tool_calls_from_response(chunks[-1])
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [
        ("get_weather", {"city": "Rome"}),
        ("get_time", {"city": "Rome"}),
    ]


def test_tools_are_called_and_their_result_returned() -> None:
    assert model().predict_and_call([WEATHER], WISH).response == "sunny in Rome"


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_run_in_an_agent(streaming: bool) -> None:
    async def go() -> str:
        agent = FunctionAgent(tools=[get_weather], llm=model(), streaming=streaming)
        return str(await agent.run(WISH))

    assert asyncio.run(go()) == "The tools returned: sunny in Rome"


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_may_be_none_at_all(streaming: bool) -> None:
    async def go() -> str:
        agent = FunctionAgent(tools=[], llm=model(), streaming=streaming)
        return str(await agent.run(QUESTION))

    assert asyncio.run(go()) == ANSWER


@pytest.mark.parametrize("with_response_format", [False, True])
def test_structured_answer_of_a_class(with_response_format: bool) -> None:
    llm = model(should_use_structured_outputs=with_response_format)
    template = PromptTemplate("Use City with city = {city}, inhabitants = 42")
    rome = City(city="Rome", inhabitants=42)
    assert llm.structured_predict(City, template, city="Rome") == rome
    assert llm.as_structured_llm(City).complete(template.format(city="Rome")).raw == rome
    assert list(llm.stream_structured_predict(City, template, city="Rome"))[-1] == rome


def test_structured_answer_is_parsed_from_text() -> None:
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=City, prompt_template_str="city = {city}, inhabitants = 42", llm=model()
    )
    assert program(city="Rome") == City(city="Rome", inhabitants=42)


def test_embeddings_have_one_vector_an_input() -> None:
    rows = vectors().get_text_embedding_batch(["a cat", "a dog"])
    assert [len(row) for row in rows] == [8, 8]
    assert asyncio.run(vectors().aget_query_embedding("a cat")) == pytest.approx(rows[0])


def test_embeddings_are_shortened() -> None:
    assert len(vectors(dimensions=4).get_text_embedding("a cat")) == 4


def test_embeddings_serve_an_index() -> None:
    index = VectorStoreIndex.from_documents(
        [Document(text="Paris is the capital of France.")], embed_model=vectors()
    )
    answer = index.as_query_engine(llm=model()).query(QUESTION)
    assert str(answer) == ANSWER
    assert len(answer.source_nodes) == 1


def test_vision_takes_a_picture() -> None:
    blocks = [TextBlock(text="What is this?"), ImageBlock(image=PIXEL)]
    answer = model().chat([ChatMessage(role="user", blocks=blocks)])
    assert answer.message.content == "I see 1 of image/png."
