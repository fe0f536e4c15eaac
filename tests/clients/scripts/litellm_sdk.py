"""LiteLLM's SDK with its provider "openai", with each of its own ways to call."""

import asyncio
import base64
import json
import os

import litellm
import pytest
from pydantic import BaseModel

URL = os.environ["ISTHMUS_URL"] + "/v1"
SETTINGS = {"api_base": URL, "api_key": "none", "num_retries": 0}
MODEL = "openai/gpt-4o-mini"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WISH = [{"role": "user", "content": "Use get_weather with city = Rome."}]
ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


def test_plain_answer_has_text_and_usage() -> None:
    answer = litellm.completion(model=MODEL, messages=QUESTION, **SETTINGS)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 6


def test_plain_async_answer_has_text() -> None:
    answer = asyncio.run(litellm.acompletion(model=MODEL, messages=QUESTION, **SETTINGS))
    assert answer.choices[0].message.content == ANSWER


def test_plain_text_completion_has_text() -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/gpt-3.5-turbo-instruct", prompt="France", **SETTINGS
    )
    assert answer.choices[0].text == ANSWER


def test_plain_answer_with_all_of_openais_parameters() -> None:
    answer = litellm.completion(
        model=MODEL,
        messages=QUESTION,
        temperature=0.5,
        top_p=0.9,
        n=2,
        stop=["###"],
        max_completion_tokens=50,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        seed=7,
        user="ada",
        logit_bias={},
        **SETTINGS,
    )
    assert [choice.message.content for choice in answer.choices] == [ANSWER, ANSWER]


def test_plain_conversation_goes_on_with_the_answer_itself() -> None:
    first = litellm.completion(model=MODEL, messages=QUESTION, **SETTINGS).choices[0].message
    for message in (first, first.model_dump(), {**first.model_dump(), "cache_control": None}):
        messages = [*QUESTION, message, {"role": "user", "content": "And again?"}]
        second = litellm.completion(model=MODEL, messages=messages, **SETTINGS)
        assert second.choices[0].message.content == ANSWER


def test_plain_prompt_with_marks_for_a_cache() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "What is the capital of France?", **mark}
    messages = [
        {"role": "system", "content": "Be brief.", **mark},
        {"role": "user", "content": [part]},
    ]
    answer = litellm.completion(model=MODEL, messages=messages, **SETTINGS)
    assert answer.choices[0].message.content == ANSWER


def test_plain_error_is_a_bad_request() -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(model=MODEL, messages=QUESTION, temperature=9, **SETTINGS)


def test_plain_unknown_model_is_not_found() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=QUESTION, **SETTINGS)


def test_plain_prompt_beyond_the_context_is_told_apart() -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=MODEL, messages=long, **SETTINGS)


def test_streamed_answer_is_the_plain_text_with_usage() -> None:
    chunks = list(
        litellm.completion(
            model=MODEL,
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
            **SETTINGS,
        )
    )
    whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 6


def test_streamed_async_answer_is_the_plain_text() -> None:
    async def stream() -> str:
        answer = await litellm.acompletion(model=MODEL, messages=QUESTION, stream=True, **SETTINGS)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    assert asyncio.run(stream()) == ANSWER


def test_streamed_text_completion_is_the_plain_text() -> None:
    chunks = litellm.text_completion(
        model="text-completion-openai/gpt-3.5-turbo-instruct",
        prompt="France",
        stream=True,
        **SETTINGS,
    )
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == ANSWER


@pytest.mark.parametrize("choice", [None, "auto", "required"])
@pytest.mark.parametrize("dumped", [False, True])
def test_tools_make_a_round_trip(choice: str | None, dumped: bool) -> None:
    options = {"tools": [WEATHER], **({"tool_choice": choice} if choice else {})}
    asked = litellm.completion(model=MODEL, messages=WISH, **options, **SETTINGS)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    sent = message.model_dump() if dumped else message
    answer = litellm.completion(
        model=MODEL, messages=[*WISH, sent, result], tools=[WEATHER], **SETTINGS
    )
    assert answer.choices[0].message.content == "The tools returned: sunny"


def test_tools_may_be_none_at_all() -> None:
    for tools in (None, []):
        answer = litellm.completion(model=MODEL, messages=QUESTION, tools=tools, **SETTINGS)
        assert answer.choices[0].message.content == ANSWER


def test_tools_are_streamed() -> None:
    chunks = list(
        litellm.completion(model=MODEL, messages=WISH, tools=[WEATHER], stream=True, **SETTINGS)
    )
    whole = litellm.stream_chunk_builder(chunks, messages=WISH)
    [call] = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Rome"},
    )
    assert whole.choices[0].finish_reason == "tool_calls"


def test_structured_answer_of_a_class() -> None:
    answer = litellm.completion(
        model=MODEL,
        messages=[{"role": "user", "content": "city = Rome, inhabitants = 42"}],
        response_format=City,
        **SETTINGS,
    )
    content = answer.choices[0].message.content
    assert City.model_validate_json(content) == City(city="Rome", inhabitants=42)


def test_structured_answer_is_streamed() -> None:
    chunks = litellm.completion(
        model=MODEL,
        messages=[{"role": "user", "content": "city = Rome, inhabitants = 42"}],
        response_format=City,
        stream=True,
        **SETTINGS,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert City.model_validate_json(text) == City(city="Rome", inhabitants=42)


def test_structured_answer_is_a_json_object() -> None:
    answer = litellm.completion(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer in JSON."}],
        response_format={"type": "json_object"},
        **SETTINGS,
    )
    assert json.loads(answer.choices[0].message.content) == {"answer": ANSWER}


@pytest.mark.parametrize("encoding", [None, "float"])
def test_embeddings_have_one_vector_an_input(encoding: str | None) -> None:
    options = {"encoding_format": encoding} if encoding else {}
    answer = litellm.embedding(
        model="openai/text-embedding-3-small", input=["a cat", "a dog"], **options, **SETTINGS
    )
    assert [len(row["embedding"]) for row in answer.data] == [8, 8]


def test_embeddings_are_shortened() -> None:
    answer = litellm.embedding(
        model="openai/text-embedding-3-small", input=["a cat"], dimensions=4, **SETTINGS
    )
    assert len(answer.data[0]["embedding"]) == 4


def test_images_are_png() -> None:
    # A dall-e name answers with a URL unless the request says otherwise; a gpt-image name cannot.
    for model, options in (("dall-e-3", {"response_format": "b64_json"}), ("gpt-image-1", {})):
        answer = litellm.image_generation(
            model=f"openai/{model}", prompt="a cat", size="1024x1024", **options, **SETTINGS
        )
        assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")


def test_vision_takes_a_picture() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    answer = litellm.completion(
        model=MODEL, messages=[{"role": "user", "content": parts}], **SETTINGS
    )
    assert answer.choices[0].message.content == "I see 1 of image/png."


BRIDGE = "openai/responses/gpt-4o-mini"
"""litellm.completion sends it to /v1/responses."""
FLAT_WEATHER = {"type": "function", **WEATHER["function"]}


def test_plain_response_has_text_and_usage() -> None:
    answer = litellm.responses(model=MODEL, input=QUESTION[0]["content"], **SETTINGS)
    assert answer.output_text == ANSWER
    assert answer.usage.output_tokens == 6


def test_plain_answer_by_way_of_responses() -> None:
    answer = litellm.completion(model=BRIDGE, messages=QUESTION, **SETTINGS)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.completion_tokens == 6


def test_streamed_response_is_the_plain_text() -> None:
    events = list(litellm.responses(model=MODEL, input="Hi", stream=True, **SETTINGS))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"


def test_streamed_answer_by_way_of_responses() -> None:
    chunks = litellm.completion(model=BRIDGE, messages=QUESTION, stream=True, **SETTINGS)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_tools_make_a_round_trip_by_way_of_responses(stream: bool) -> None:
    messages = [*WISH]
    asked = litellm.completion(
        model=BRIDGE, messages=messages, tools=[WEATHER], stream=stream, **SETTINGS
    )
    if stream:
        asked = litellm.stream_chunk_builder(list(asked), messages=messages)
    message = asked.choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = litellm.completion(
        model=BRIDGE, messages=[*messages, message, result], tools=[WEATHER], **SETTINGS
    )
    assert answer.choices[0].message.content == "The tools returned: sunny"


def test_tools_of_a_response_make_a_round_trip() -> None:
    items = [{"role": "user", "content": WISH[0]["content"]}]
    first = litellm.responses(model=MODEL, input=items, tools=[FLAT_WEATHER], **SETTINGS)
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items += [call.model_dump(exclude_none=True), result]
    again = litellm.responses(model=MODEL, input=items, tools=[FLAT_WEATHER], **SETTINGS)
    assert again.output_text == "The tools returned: sunny"
