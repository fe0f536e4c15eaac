"""Tokenize: its limits, and what its one message has."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from contract.limits import MAX_TOKENS
from inference import tokenizing
from inference.engines.base import Tokens
from inference.errors import InferenceError
from inference.tokenizing import Tokenizing, check_tokenize, find_tokenizer
from isthmus.v1.chat_pb2 import ChatInput, ChatMessage, ContentPart, Role
from isthmus.v1.generate_pb2 import TokenIds
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse

CHAT = ChatInput(messages=[ChatMessage(role=Role.ROLE_USER, parts=[ContentPart(text="x" * 90)])])


def engine(tokens: Tokens | None = None, characters: int | None = 3) -> Any:
    async def tokenize(request: TokenizeRequest) -> Tokens:
        await asyncio.sleep(0)
        assert tokens is not None
        return tokens

    return SimpleNamespace(tokenize=tokenize, characters_a_token=characters)


def refused(request: TokenizeRequest, context_length: int = 30, **more: Any) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        check_tokenize(request, engine(**more), context_length)
    return caught.value


def prepared(request: TokenizeRequest, tokens: Tokens, context_length: int = 30) -> Any:
    terms: Any = SimpleNamespace(context_length=context_length)
    return asyncio.run(Tokenizing(engine(tokens)).prepare(request, terms))


def test_request_without_input_is_refused() -> None:
    assert refused(TokenizeRequest()).reason == "missing_required_parameter"


def test_chat_is_checked_as_that_of_generate() -> None:
    error = refused(TokenizeRequest(chat=ChatInput()))
    assert error.param == "messages"


def test_only_text_has_special_tokens() -> None:
    check_tokenize(TokenizeRequest(text="x", add_special_tokens=True), engine(), 30)
    for request in (
        TokenizeRequest(chat=CHAT, add_special_tokens=True),
        TokenizeRequest(token_ids=TokenIds(ids=[1]), add_special_tokens=True),
    ):
        assert refused(request).param == "add_special_tokens"


def test_list_of_tokens_is_bounded_by_the_larger_of_both_limits() -> None:
    for context_length, most in ((30, MAX_TOKENS), (MAX_TOKENS + 5, MAX_TOKENS + 5)):
        request = TokenizeRequest(token_ids=TokenIds(ids=[1] * most))
        check_tokenize(request, engine(), context_length)
        request.token_ids.ids.append(1)
        assert refused(request, context_length).param == "tokens"


@pytest.mark.parametrize(
    "request_", [TokenizeRequest(text="x" * 90), TokenizeRequest(chat=CHAT)], ids=["text", "chat"]
)
def test_text_that_cannot_fit_the_context_is_refused_before_it_waits(
    request_: TokenizeRequest,
) -> None:
    check_tokenize(request_, engine(), 30)
    assert "30" in str(refused(request_, 29))
    # The engine does not know how many characters a token has.
    check_tokenize(request_, engine(characters=None), 29)


def test_tokens_of_a_text_and_their_names() -> None:
    found = prepared(TokenizeRequest(text="a b"), Tokens([5, 6], ["a", "b"]))
    assert found.response == TokenizeResponse(
        count=2, token_ids=[5, 6], token_names=["a", "b"], context_length=30
    )
    assert (found.prompt_tokens, found.max_output_tokens) == (0, 0)


def test_token_ids_are_answered_with_their_text() -> None:
    request = TokenizeRequest(token_ids=TokenIds(ids=[5, 6]))
    found = prepared(request, Tokens([5, 6], (), "a b"))
    assert found.response == TokenizeResponse(count=2, text="a b", context_length=30)


def test_count_has_neither_tokens_nor_text() -> None:
    for request in (
        TokenizeRequest(text="a b", count_only=True),
        TokenizeRequest(token_ids=TokenIds(ids=[5, 6]), count_only=True),
    ):
        found = prepared(request, Tokens([5, 6], ["a", "b"], "a b"))
        assert found.response == TokenizeResponse(count=2, context_length=30)


def test_count_may_exceed_the_context_but_not_every_bound() -> None:
    most = [1] * MAX_TOKENS
    request = TokenizeRequest(text="a", count_only=True)
    assert prepared(request, Tokens(most)).response.count == MAX_TOKENS
    with pytest.raises(InferenceError) as caught:
        prepared(request, Tokens([*most, 1]))
    assert str(MAX_TOKENS + 1) in str(caught.value)
    assert "0 for the completion" in str(caught.value)
    assert caught.value.param is None
    assert prepared(request, Tokens([*most, 1]), MAX_TOKENS + 1).response.count == MAX_TOKENS + 1


def test_error_of_a_chat_is_that_of_chats() -> None:
    with pytest.raises(InferenceError) as caught:
        prepared(TokenizeRequest(chat=CHAT), Tokens([1] * (MAX_TOKENS + 1)))
    error = caught.value
    assert (error.reason, error.param) == ("context_length_exceeded", "messages")


def test_message_is_made_in_a_thread_and_emitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    make = tokenizing._response

    def noting(*given: Any) -> TokenizeResponse:
        threads.append(threading.get_ident())
        return make(*given)

    monkeypatch.setattr(tokenizing, "_response", noting)
    found = prepared(TokenizeRequest(text="a"), Tokens([5]))
    assert threads != [threading.get_ident()]
    emitted: list[Any] = []
    asyncio.run(Tokenizing(engine()).generate(found, emitted.append))
    assert emitted == [found.response]


def test_tokenizer_is_that_of_the_model_and_its_kind_of_input() -> None:
    asked: list[Any] = []
    served: Any = SimpleNamespace()

    def tokenizer(name: str, *, chat: bool) -> Any:
        asked.append((name, chat))
        return served, engine(Tokens([5]))

    registry: Any = SimpleNamespace(tokenizer=tokenizer)
    for request, chat in ((TokenizeRequest(model="m", text="a"), False),
                          (TokenizeRequest(model="m", chat=CHAT), True)):  # fmt: skip
        found, serving = find_tokenizer(registry, request)
        assert found is served
        terms: Any = SimpleNamespace(context_length=30)
        assert asyncio.run(serving.prepare(request, terms)).response.count == 1
        assert asked.pop() == ("m", chat)
