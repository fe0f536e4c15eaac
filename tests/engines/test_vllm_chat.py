"""Chats and refused requests on a real model."""

from __future__ import annotations

from typing import Any

import pytest

from inference.engines.base import Terms, TextEngine
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2, generate_pb2
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.engines.generating import chat, prepare, run, text

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def test_chat_generates_plain_text_until_the_end_token(engine: TextEngine) -> None:
    result = await run(engine, chat("What is the capital of France?"))
    assert "Paris" in result.texts[0]
    assert result.plain > 1
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP
    assert result.finishes[0].WhichOneof("matched") == "end_of_text"
    assert result.usage is not None
    assert result.usage.completion_tokens >= result.plain


async def test_engine_describes_its_model(engine: TextEngine) -> None:
    model = engine.model
    assert model.context_length == 2048
    assert model.created > 1_600_000_000
    assert (model.text.chat, model.text.tools) == (True, True)
    assert (model.text.reasoning, model.text.suffix) == (False, False)
    assert model.text.vocabulary_size == 49152
    assert engine.system_fingerprint.startswith("fp_")


async def test_developer_role_becomes_system_and_text_parts_are_joined(engine: TextEngine) -> None:
    def of(role: chat_pb2.Role, *parts: str) -> GenerateRequest:
        first = chat_pb2.ChatMessage(role=role, parts=[{"text": part} for part in parts])
        user = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[{"text": "Hi"}])
        return GenerateRequest(chat=chat_pb2.ChatInput(messages=[first, user]))

    one = await prepare(engine, of(chat_pb2.ROLE_DEVELOPER, "You are ", "a pirate."))
    other = await prepare(engine, of(chat_pb2.ROLE_SYSTEM, "You are a pirate."))
    third = await prepare(engine, of(chat_pb2.ROLE_SYSTEM, "You are a pirate. Sing and dance."))
    assert one.prompt_tokens == other.prompt_tokens < third.prompt_tokens


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"sampling": {"temperature": 9.0}}, "temperature"),
        ({"sampling": {"presence_penalty": 9.0}}, "presence_penalty"),
        ({"sampling": {"logit_bias": {999_999: 1.0}}}, "logit_bias"),
        ({"stopping": {"token_ids": [999_999]}}, "stop_token_ids"),
        ({"output": {"logprobs": 1000}}, "logprobs"),
        ({"suffix": "the end"}, "suffix"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"token_ids": {"ids": [49152]}}, "prompt[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_impossible_request_is_refused_naming_the_parameter(
    engine: TextEngine, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, GenerateRequest(**({"text": "Hello"} | change)))
    assert refusal.value.param == param
    assert engine.health().alive


async def test_text_model_refuses_media(engine: TextEngine) -> None:
    request = chat("Look:")
    request.chat.messages[0].parts.add(image={"data": b"\x89PNG", "mime_type": "image/png"})
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, request)
    assert (refusal.value.reason, refusal.value.param) == ("unsupported_value", "messages")


async def test_chat_template_argument_is_refused(engine: TextEngine) -> None:
    request = chat("Hello")
    request.chat.template_arguments_json = '{"chat_template": "{{ 1 }}"}'
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, request)
    assert refusal.value.reason == "unsupported_parameter"


async def test_long_prompt_is_counted_and_huge_prompt_is_refused(engine: TextEngine) -> None:
    long = await engine.prepare(chat("word " * 3000), Terms(context_length=100_000))
    assert long.prompt_tokens > 3000
    with pytest.raises(InferenceError) as refusal:
        await prepare(engine, chat("word " * 1_000_000))
    assert refusal.value.reason == "context_length_exceeded"
    assert refusal.value.param == "messages"


async def test_repeated_prompt_is_cached_within_its_cache_salt(engine: TextEngine) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 30
    salted = {"cache_salt": "one"}
    first = await run(engine, text(prompt, **salted), 2)
    second = await run(engine, text(prompt, **salted), 2)
    other = await run(engine, text(prompt, cache_salt="two"), 2)
    cached = [result.usage.cached_tokens for result in (first, second, other) if result.usage]
    assert cached[0] == cached[2] == 0
    assert cached[1] > 0


async def test_final_assistant_message_is_continued(engine: TextEngine) -> None:
    request = chat("What is the capital of France?")
    begun = "The capital of France is the lovely city of"
    request.chat.messages.add(role=chat_pb2.ROLE_ASSISTANT, parts=[{"text": begun}])
    opened = await prepare(engine, request)
    request.chat.continue_final_message = True
    continued = await run(engine, request, 8)
    assert continued.texts[0].startswith(" Paris")
    assert continued.usage is not None
    assert continued.usage.prompt_tokens < opened.prompt_tokens


async def test_reasoning_effort_is_ignored_by_a_template_without_it(engine: TextEngine) -> None:
    plain = await prepare(engine, chat("Hi"))
    request = chat("Hi")
    request.chat.reasoning_effort = "high"
    assert (await prepare(engine, request)).prompt_tokens == plain.prompt_tokens
