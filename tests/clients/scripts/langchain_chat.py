"""LangChain's classes for OpenAI, and its agents. tests/stack has them on a real model."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.tools import tool
from langchain_core.output_parsers import PydanticOutputParser
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import DefaultAsyncHttpx2Client, DefaultHttpx2Client
from pydantic import BaseModel

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
PROMPT = "city = Rome, inhabitants = 42"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def settings() -> Iterator[dict[str, Any]]:
    """LangChain would share its HTTP clients among event loops, and never close them."""
    with DefaultHttpx2Client() as client:
        yield {
            "base_url": os.environ["ISTHMUS_URL"] + "/v1",
            "api_key": "none",
            "max_retries": 0,
            "http_client": client,
            "http_async_client": DefaultAsyncHttpx2Client(),
        }


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(settings: dict[str, Any], request: pytest.FixtureRequest) -> ChatOpenAI:
    return ChatOpenAI(
        **settings, model="gpt-4o-mini", stream_usage=True, use_responses_api=request.param
    )


def test_plain_answer_has_text_and_usage(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "Be brief."), ("human", QUESTION)])
    assert answer.text == ANSWER
    assert answer.usage_metadata["output_tokens"] == 6


def test_plain_conversation_goes_on_with_the_answer_itself(chat: ChatOpenAI) -> None:
    first = chat.invoke(QUESTION)
    assert chat.invoke([("human", QUESTION), first, ("human", "And again?")]).text == ANSWER


def test_plain_prompt_with_marks_for_a_cache(chat: ChatOpenAI) -> None:
    part = {"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}
    assert chat.invoke([("human", [part])]).text == ANSWER


def test_plain_completion_has_text(settings: dict[str, Any]) -> None:
    assert OpenAI(**settings, model="gpt-3.5-turbo-instruct").invoke("France") == ANSWER


def test_plain_error_has_its_parameter(settings: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ChatOpenAI(**settings, model="gpt-4o-mini", temperature=9).invoke(QUESTION)
    assert caught.value.param == "temperature"


def test_streamed_answer_is_the_plain_text_with_usage(chat: ChatOpenAI) -> None:
    whole: Any = None
    for chunk in chat.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.text == ANSWER
    assert whole.usage_metadata["output_tokens"] == 6


def test_streamed_async_answer_is_the_plain_text(chat: ChatOpenAI) -> None:
    async def stream() -> str:
        return "".join([chunk.text async for chunk in chat.astream(QUESTION)])

    assert asyncio.run(stream()) == ANSWER


def test_streamed_completion_is_the_plain_text(settings: dict[str, Any]) -> None:
    model = OpenAI(**settings, model="gpt-3.5-turbo-instruct")
    assert "".join(model.stream("France")) == ANSWER


@pytest.mark.parametrize("choice", [None, "auto", "required", "get_weather"])
@pytest.mark.parametrize("strict", [None, True])
def test_tools_make_a_round_trip(chat: ChatOpenAI, choice: str | None, strict: bool | None) -> None:
    wish = ("human", "Use get_weather with city = Rome.")
    asked = chat.bind_tools([get_weather], tool_choice=choice, strict=strict).invoke([wish])
    [call] = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Rome"})
    result = get_weather.invoke(call)
    answer = chat.bind_tools([get_weather]).invoke([wish, asked, result])
    assert answer.text == "The tools returned: sunny in Rome"


def test_tools_may_be_none_at_all(chat: ChatOpenAI) -> None:
    assert chat.bind_tools([]).invoke(QUESTION).text == ANSWER


def test_tools_are_streamed(chat: ChatOpenAI) -> None:
    whole: Any = None
    for chunk in chat.bind_tools([get_weather]).stream("Use get_weather with city = Rome."):
        whole = chunk if whole is None else whole + chunk
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Rome"}]
    assert not whole.invalid_tool_calls


@pytest.mark.parametrize("mode", ["invoke", "updates", "messages"])
def test_tools_run_in_an_agent(chat: ChatOpenAI, mode: Literal["updates", "messages"]) -> None:
    agent = create_agent(chat, [get_weather], system_prompt="Be brief.")
    wish = {"messages": [{"role": "user", "content": "Use get_weather with city = Rome."}]}
    if mode == "invoke":
        text = agent.invoke(wish)["messages"][-1].text
    elif mode == "updates":
        text = list(agent.stream(wish, stream_mode=mode))[-1]["model"]["messages"][-1].text
    else:
        pieces = [piece for piece, _ in agent.stream(wish, stream_mode=mode)]
        text = "".join(piece.text for piece in pieces if piece.type == "AIMessageChunk")
    assert text == "The tools returned: sunny in Rome"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("strict", [None, True])
def test_structured_answer_of_a_class(chat: ChatOpenAI, method: Any, strict: bool | None) -> None:
    options = {} if method == "json_mode" else {"strict": strict}
    model = chat.with_structured_output(City, method=method, **options)
    schema = f" Answer with JSON of this schema: {City.model_json_schema()!r}".replace("'", '"')
    prompt = PROMPT + schema if method == "json_mode" else PROMPT
    assert model.invoke(prompt) == City(city="Rome", inhabitants=42)


def test_structured_answer_is_streamed(chat: ChatOpenAI) -> None:
    model = chat.with_structured_output(City)
    assert list(model.stream(PROMPT))[-1] == City(city="Rome", inhabitants=42)


def test_structured_answer_is_parsed_from_text(chat: ChatOpenAI) -> None:
    parser = PydanticOutputParser(pydantic_object=City)
    prompt = f"{PROMPT}\n{parser.get_format_instructions()}"
    assert (chat | parser).invoke(prompt) == City(city="Rome", inhabitants=42)


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_structured_answer_of_an_agent(chat: ChatOpenAI, strategy: Any) -> None:
    agent = create_agent(chat, [get_weather], response_format=strategy(City))
    wish = {"messages": [{"role": "user", "content": f"Use get_weather. {PROMPT}"}]}
    state = agent.invoke(wish)
    assert state["structured_response"] == City(city="Rome", inhabitants=42)
    assert any(message.type == "tool" for message in state["messages"])


@pytest.mark.parametrize("as_tokens", [True, False])
def test_embeddings_of_documents_and_queries_agree(
    settings: dict[str, Any], as_tokens: bool
) -> None:
    # By default LangChain sends the token ids of cl100k_base.
    embeddings = OpenAIEmbeddings(
        **settings, model="text-embedding-ada-002", check_embedding_ctx_length=as_tokens
    )
    rows = embeddings.embed_documents(["a cat", "a dog"])
    assert [len(row) for row in rows] == [8, 8]
    assert embeddings.embed_query("a cat") == pytest.approx(rows[0], abs=1e-5)


def test_vision_takes_a_picture(chat: ChatOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    assert chat.invoke([("human", parts)]).text == "I see 1 of image/png."
