"""langchain-openai against the default models."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import DefaultAsyncHttpx2Client, DefaultHttpx2Client
from pydantic import BaseModel, Field, SecretStr

from tests.stack.conftest import Up

QUESTION = "What is the capital of France?"


class Weather(BaseModel):
    """The weather forecast of a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that resolves any host but 127.0.0.1, where the stack listens."""
    wanted: list[object] = []
    look_up = socket.getaddrinfo

    def guarded(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "127.0.0.1":
            wanted.append(host)
            raise OSError(f"{host} is outside")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    yield
    assert not wanted


@pytest.fixture
async def settings(up: Up) -> AsyncIterator[dict[str, Any]]:
    """Client settings for the stack; LangChain would not close its own HTTP clients."""
    async with DefaultAsyncHttpx2Client() as http_async_client:
        with DefaultHttpx2Client() as http_client:
            yield {
                "base_url": f"{up.url}/v1",
                "api_key": SecretStr("none"),
                "max_retries": 0,
                "timeout": 100,
                "http_client": http_client,
                "http_async_client": http_async_client,
            }


@pytest.fixture
def chat(settings: dict[str, Any]) -> ChatOpenAI:
    # Not "gpt-4": LangChain assumes that gpt-4 has no structured output.
    return ChatOpenAI(
        **settings,
        model="smollm2-135m-instruct",
        temperature=0,
        max_completion_tokens=100,
        stream_usage=True,
    )


def test_invoke_returns_text_metadata_and_usage(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "Be brief."), ("human", QUESTION)])
    assert "Paris" in answer.text
    assert answer.response_metadata["model_name"] == "smollm2-135m-instruct"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 0


def test_stream_has_the_text_and_usage_of_the_plain_response(chat: ChatOpenAI) -> None:
    plain = chat.invoke(QUESTION)
    whole: Any = None
    chunks = list(chat.stream(QUESTION))
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    assert len(chunks) > 5
    assert whole.text == plain.text
    assert whole.usage_metadata is not None
    assert plain.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == plain.usage_metadata["output_tokens"]


async def test_async_stream_returns_the_text(chat: ChatOpenAI) -> None:
    assert "Paris" in "".join([chunk.text async for chunk in chat.astream(QUESTION)])


def test_structured_output_is_an_object_of_the_schema(chat: ChatOpenAI) -> None:
    model = chat.with_structured_output(Weather, method="json_schema", strict=True)
    assert isinstance(model.invoke("What will the weather be in Rome?"), Weather)


@pytest.mark.parametrize("choice", ["required", "Weather"])
def test_bound_tools_are_called(chat: ChatOpenAI, choice: str) -> None:
    model = chat.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
    [call] = model.invoke("What will the weather be in Rome?").tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])


def test_bound_tools_are_streamed(chat: ChatOpenAI) -> None:
    model = chat.bind_tools([Weather], tool_choice="Weather")
    whole: Any = None
    for chunk in model.stream("What will the weather be in Rome?"):
        whole = chunk if whole is None else whole + chunk
    [call] = whole.tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])
    assert not whole.invalid_tool_calls


async def test_embeddings_are_equal_for_documents_and_queries(settings: dict[str, Any]) -> None:
    # LangChain's length check would download the vocabulary of OpenAI's tokenizer.
    embeddings = OpenAIEmbeddings(
        **settings, model="text-embedding-ada-002", check_embedding_ctx_length=False
    )
    rows = embeddings.embed_documents(["a cat", "an unpaid invoice"])
    assert [len(row) for row in rows] == [384, 384]
    assert embeddings.embed_query("a cat") == pytest.approx(rows[0], abs=1e-5)
    assert await embeddings.aembed_query("a cat") == pytest.approx(rows[0], abs=1e-5)
