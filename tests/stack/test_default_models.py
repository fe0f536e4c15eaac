"""The default models under the model names that existing clients use."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI

from tests.stack.conftest import Up
from tests.tiktoken_cache import fill_tiktoken_cache

CHAT_NAMES = {
    "gpt-4": 8192,
    "gpt-4-32k": 8192,  # the alias allows 32,768; the model itself has 8,192
    "gpt-3.5-turbo": 4096,
    "claude-2": 8192,
    "claude-instant-1": 8192,
}


@pytest.fixture
def client(up: Up) -> OpenAI:
    return OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=100)


@pytest.mark.parametrize("name", CHAT_NAMES)
def test_chat_works_under_familiar_model_names(client: OpenAI, name: str) -> None:
    answer = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=12,
    )
    assert answer.model == name
    assert "Paris" in (answer.choices[0].message.content or "")


def test_streamed_and_plain_responses_are_equal_at_temperature_0(client: OpenAI) -> None:
    question = {
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "Name three colours."}],
        "temperature": 0,
        "max_tokens": 40,
    }
    plain = client.chat.completions.create(**question)
    stream = client.chat.completions.create(
        **question, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == plain.choices[0].message.content
    assert usage.completion_tokens == plain.usage.completion_tokens


def test_completion_continues_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(
        model="text-davinci-003", prompt="The capital of France is", temperature=0, max_tokens=5
    )
    assert answer.model == "text-davinci-003"
    assert "Paris" in answer.choices[0].text


def test_embeddings_of_related_words_are_closer(client: OpenAI) -> None:
    cat, kitten, invoice = (
        row.embedding
        for row in client.embeddings.create(
            model="text-embedding-ada-002", input=["a cat", "a kitten", "an unpaid invoice"]
        ).data
    )

    def closeness(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert len(cat) == 384
    assert closeness(cat, cat) == pytest.approx(1, abs=1e-5)
    assert closeness(cat, kitten) > closeness(cat, invoice) + 0.2


@pytest.mark.parametrize(("name", "limit"), CHAT_NAMES.items())
def test_each_chat_name_has_its_own_context_length(client: OpenAI, name: str, limit: int) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=name, messages=messages, max_tokens=limit)
    assert caught.value.code == "context_length_exceeded"
    assert f"maximum context length is {limit} tokens" in caught.value.message


def test_prompt_beyond_the_context_length_is_refused(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(openai.BadRequestError, match="4096 tokens") as caught:
        client.chat.completions.create(model="gpt-3.5-turbo", messages=messages)
    assert caught.value.param == "messages"


def test_token_ids_from_langchain_are_decoded_as_cl100k(
    up: Up, client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_tiktoken_cache(tmp_path, monkeypatch)
    texts = ["a cat", "The quick brown fox, déjà vu.", "日本語のテキスト"]
    langchain = OpenAIEmbeddings(base_url=f"{up.url}/v1", api_key="none")
    assert langchain.check_embedding_ctx_length, (
        "by default LangChain sends token ids instead of text"
    )
    by_tokens = langchain.embed_documents(texts)
    by_texts = client.embeddings.create(model=langchain.model, input=texts).data
    for tokens, text in zip(by_tokens, by_texts, strict=True):
        assert tokens == pytest.approx(text.embedding, abs=1e-5)


def test_embedding_model_accepts_its_own_token_ids_under_its_own_id(client: OpenAI) -> None:
    own, text = (
        client.embeddings.create(model="all-minilm-l6-v2", input=form).data[0].embedding
        for form in ([7592, 2088], "hello world")
    )
    assert own == pytest.approx(text, abs=1e-5)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="all-minilm-l6-v2", input=[30522])
    assert caught.value.param == "input[0]"
    assert "token 30522 is not in the vocabulary of 30522 tokens" in caught.value.message


def test_too_long_embedding_input_is_refused_not_cut(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256"):
        client.embeddings.create(model="text-embedding-ada-002", input="word " * 8300)


def test_all_familiar_names_are_listed(client: OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    familiar = {*CHAT_NAMES, "text-davinci-003", "text-embedding-ada-002"}
    assert familiar <= listed
    assert client.models.retrieve("gpt-4").id == "gpt-4"
