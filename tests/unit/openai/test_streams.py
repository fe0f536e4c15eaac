"""Responses do not depend on how the output was split, and fit the SDK's types."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from edge.exchange.machine import Exchange, Source
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.errors import OpenAIError
from edge.openai.translator import Translator
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    ChoiceFinish,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
)
from isthmus.v1.usage_pb2 import Admitted, Usage
from tests.unit.openai.golden_files import (
    IDENTITY,
    OK,
    Case,
    cases,
    document_bytes,
    events_of,
    everything,
    parse,
    stream_bytes,
)

ADMITTED = GenerateResponse(admitted=Admitted(system_fingerprint="fp_1"))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
TEXT = 'He said: "é\u2028\n\t\\ \x07 \x7f 😀" </script> ' * 3


def body(**parameters: Any) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": "m", "messages": messages} | parameters).encode()


def run(translator: Translator[GenerateResponse], parts: Iterable[GenerateResponse]) -> bytes:
    """The bytes that an exchange with one source sends for its messages, without a document."""
    (source,) = Exchange(translator).sources
    return everything([*(source.part(part) for part in parts), source.end(OK)])


def pieces(dice: random.Random, text: str) -> list[str]:
    cuts = sorted({0, len(text), *(dice.randint(0, len(text)) for _ in range(6))})
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


# The SDK's types. Its type for completions forbids nulls that the API sends.


def completion_without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    for choice in document["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        if choice["logprobs"]:
            for name, stand_in in (("token_logprobs", 0.0), ("top_logprobs", {})):
                values = choice["logprobs"][name]
                choice["logprobs"][name] = [stand_in if v is None else v for v in values]
    return document


@pytest.mark.parametrize(("folder", "case"), cases("chat", "completions"))
def test_golden_responses_fit_the_sdks_types(folder: str, case: Case) -> None:
    if "sources" not in case:
        return
    call = parse(folder, case)
    if call.stream:
        events = events_of(stream_bytes(call.stream_translator(IDENTITY), case["sources"]))
        documents = [event for event in events if event != "[DONE]" and "error" not in event]
        assert documents
    else:
        document = document_bytes(call.document_translator(IDENTITY), case["sources"])
        documents = [json.loads(document)]
    for document in documents:
        if folder == "completions":
            document = completion_without_nulls(document)
            if not document.get("usage"):
                document.pop("usage", None)
            Completion.model_validate_json(json.dumps(document), strict=True)
        elif call.stream:
            ChatCompletionChunk.model_validate_json(json.dumps(document), strict=True)
        else:
            ChatCompletion.model_validate_json(json.dumps(document), strict=True)


STREAM_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


@pytest.mark.parametrize(("folder", "case"), cases("responses"))
def test_golden_responses_fit_the_sdks_types_for_responses(folder: str, case: Case) -> None:
    if "sources" not in case:
        return
    call = parse(folder, case)
    if not call.stream:
        document = document_bytes(call.document_translator(IDENTITY), case["sources"])
        Response.model_validate_json(document, strict=True)
        return
    *events, last = events_of(stream_bytes(call.stream_translator(IDENTITY), case["sources"]))
    assert last == "[DONE]"
    for event in events:
        STREAM_EVENT.validate_json(json.dumps(event), strict=True)
    assert isinstance(STREAM_EVENT.validate_python(events[-1]).sequence_number, int)


@pytest.mark.parametrize(("_folder", "case"), cases("embeddings", "models"))
def test_golden_embeddings_and_models_fit_the_sdks_types(_folder: str, case: Case) -> None:
    if _folder == "models":
        for listed in case["document"]["data"]:
            Model.model_validate(listed, strict=True)
    elif isinstance(case["document"]["data"][0]["embedding"], list):
        CreateEmbeddingResponse.model_validate(case["document"], strict=True)


# Splitting


def choice_parts(dice: random.Random, index: int) -> list[GenerateResponse]:
    """Messages with the reasoning, text and two tool calls of one choice, each split at random."""
    parts = [ChoiceDelta(index=index, reasoning=cut) for cut in pieces(dice, "Hmm, well. ")]
    parts += [ChoiceDelta(index=index, text=cut) for cut in pieces(dice, f"{index}{TEXT}")]
    for call in (0, 1):
        opening = ToolCallDelta(index=call, id=f"call_{index}{call}", name="f")
        cuts = [opening] + [
            ToolCallDelta(index=call, arguments=cut) for cut in pieces(dice, '{"a": "é\\n"}')
        ]
        if dice.random() < 0.5:
            # All pieces in one message, as a slow reader gets them.
            parts.append(ChoiceDelta(index=index, tool_calls=cuts))
        else:
            parts += [ChoiceDelta(index=index, tool_calls=[cut]) for cut in cuts]
    if dice.random() < 0.5:
        # The end of one call and the opening of the next, made in one engine step.
        place = next(
            i for i, part in enumerate(parts) if part.tool_calls and part.tool_calls[0].index
        )
        parts[place - 1].MergeFrom(parts.pop(place))
    responses = [GenerateResponse(deltas=[part]) for part in parts]
    finish = ChoiceFinish(index=index, reason=FINISH_REASON_TOOL_CALLS)
    return [*responses, GenerateResponse(finishes=[finish])]


def interleaved(dice: random.Random, choices: int) -> list[GenerateResponse]:
    queues = [choice_parts(dice, index) for index in range(choices)]
    merged = []
    while any(queues):
        response = GenerateResponse()
        for queue in dice.sample(queues, dice.randint(1, choices)):
            if queue:
                response.MergeFrom(queue.pop(0))
        merged.append(response)
    merged[-1].usage.CopyFrom(Usage(prompt_tokens=3, completion_tokens=7))
    return merged


@pytest.mark.parametrize("seed", range(20))
def test_stream_joined_by_the_sdk_equals_the_plain_response(seed: int) -> None:
    dice = random.Random(seed)
    choices = dice.randint(1, 4)
    parts = interleaved(dice, choices)
    plain = parse_chat_request(body(n=choices, tools=[TOOL])).document_translator(IDENTITY)
    asked = body(n=choices, tools=[TOOL], stream=True, stream_options={"include_usage": True})
    stream = parse_chat_request(asked).stream_translator(IDENTITY)
    parts.insert(0, ADMITTED)
    events = events_of(run(stream, parts))
    run(plain, parts)
    assert events.pop() == "[DONE]"
    joined = ChatCompletionStreamState()
    for event in events:
        for choice in event["choices"]:
            # Some clients read only the first.
            assert len(choice["delta"].get("tool_calls", [])) <= 1
        joined.handle_chunk(ChatCompletionChunk.model_validate(event))
    assert events[-1]["choices"] == []
    want = json.loads(plain.document())
    got = joined.get_final_completion().model_dump(mode="json")
    assert got["usage"]["total_tokens"] == want["usage"]["total_tokens"] == 10
    for seen, wanted in zip(got["choices"], want["choices"], strict=True):
        assert seen["index"] == wanted["index"]
        assert seen["finish_reason"] == wanted["finish_reason"]
        for name in ("role", "content", "refusal", "reasoning_content"):
            assert seen["message"][name] == wanted["message"][name], name
        calls = [
            {"id": c["id"], "type": c["type"], "function": c["function"]}
            for c in seen["message"]["tool_calls"]
        ]
        for call in calls:
            call["function"].pop("parsed_arguments", None)
        assert calls == wanted["message"]["tool_calls"]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_text_and_part_write_the_same_bytes(endpoint: str, seed: int) -> None:
    """`text` is the fast path of `part`."""
    dice = random.Random(seed)

    source = 1 if endpoint == "completions" else 0

    def open_source() -> Source[GenerateResponse]:
        if endpoint == "chat":
            exchange = Exchange(parse_chat_request(body(stream=True)).stream_translator(IDENTITY))
        else:
            asked = json.dumps({"model": "m", "prompt": ["a", "b"], "stream": True}).encode()
            exchange = Exchange(parse_completion_request(asked).stream_translator(IDENTITY), 2)
        for each in exchange.sources:
            each.part(ADMITTED)
        exchange.hold_expired()
        return exchange.sources[source]

    fast, general = open_source(), open_source()
    joined = ""
    for cut in pieces(dice, TEXT):
        sent = fast.text(cut)
        delta = ChoiceDelta(index=0, text=cut)
        assert sent == general.part(GenerateResponse(deltas=[delta]))
        assert isinstance(sent, bytes)
        (event,) = events_of(sent)
        choice = event["choices"][0]
        joined += choice["delta"]["content"] if endpoint == "chat" else choice["text"]
        assert choice["index"] == source
    assert joined == TEXT


def token(text: str, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(token=LogprobEntry(id=1, text=text, data=text.encode(), logprob=logprob))


@pytest.mark.parametrize("seed", range(10))
def test_joined_logprobs_do_not_depend_on_the_split(seed: int) -> None:
    dice = random.Random(seed)
    tokens = [token(text) for text in ("Hé", "y", " ", "😀", "", "end")]
    asked = {"model": "m", "prompt": "pröm", "logprobs": 0}
    whole = parse_completion_request(json.dumps(asked).encode()).document_translator(IDENTITY)
    cut = parse_completion_request(json.dumps(asked | {"stream": True}).encode())
    finish = GenerateResponse(finishes=[ChoiceFinish(index=0, reason=FINISH_REASON_STOP)])
    delta = ChoiceDelta(index=0, text="Héy 😀end", logprobs=Logprobs(tokens=tokens))
    run(whole, [GenerateResponse(deltas=[delta]), finish])
    parts = [ADMITTED]
    while tokens:
        count = dice.randint(1, len(tokens))
        taken, tokens = tokens[:count], tokens[count:]
        text = "".join(t.token.text for t in taken)
        delta = ChoiceDelta(index=0, text=text, logprobs=Logprobs(tokens=taken))
        parts.append(GenerateResponse(deltas=[delta]))
    events = events_of(run(cut.stream_translator(IDENTITY), [*parts, finish]))
    lists: dict[str, list[Any]] = {}
    for event in events[:-2]:
        for name, values in event["choices"][0]["logprobs"].items():
            lists.setdefault(name, []).extend(values)
    assert lists == json.loads(whole.document())["choices"][0]["logprobs"]
    assert lists["text_offset"] == [4, 6, 7, 8, 9, 9]
    assert "".join(lists["tokens"]) == "Héy 😀end"


# A service that breaks the contract


def odd_response(dice: random.Random) -> GenerateResponse:
    response = GenerateResponse()
    for _ in range(dice.randrange(3)):
        delta = response.deltas.add(index=dice.choice([0, 1, 2, 99]))
        delta.text = dice.choice(["", "a", "\x00é"])
        delta.reasoning = dice.choice(["", "", "r"])
        for _ in range(dice.choice([0, 0, 3])):
            delta.tool_calls.add(index=dice.choice([0, 0, 5]), id="x", name="f", arguments="{")
        if dice.random() < 0.2:
            delta.logprobs.tokens.add()
            delta.logprobs.tokens.append(token("\ufffd", dice.choice([float("nan"), -1e300])))
    for _ in range(dice.choice([0, 0, 1, 2])):
        response.finishes.add(index=dice.choice([0, 1, 7]), reason=dice.choice([0, 1, 2, 42]))
    if dice.random() < 0.2:
        response.usage.prompt_tokens = 1
    if dice.random() < 0.1:
        response.prompt_logprobs.tokens.append(token("p", float("-inf")))
    return response


@pytest.mark.parametrize("parameters", [{}, {"logprobs": True, "top_logprobs": 1}])
def test_any_message_sequence_gives_a_valid_stream(parameters: dict[str, Any]) -> None:
    dice = random.Random(7)
    done = cut = 0
    for _ in range(300):
        stream = parse_chat_request(body(stream=True, n=2, **parameters)).stream_translator(
            IDENTITY
        )
        plain = parse_chat_request(body(n=2, **parameters)).document_translator(IDENTITY)
        parts = [odd_response(dice) for _ in range(dice.randrange(12))]
        run(plain, parts)
        *events, last = events_of(run(stream, parts))
        finishes = [0, 0]
        for event in events:
            (choice,) = event["choices"]
            finishes[choice["index"]] += choice["finish_reason"] is not None
            ChatCompletionChunk.model_validate(event)
        assert max(finishes) <= 1
        if finishes == [1, 1]:
            done += 1
            assert last == "[DONE]"
            ChatCompletion.model_validate_json(plain.document(), strict=True)
        else:
            cut += 1
            assert last["error"]["type"] == "server_error"
            with pytest.raises(OpenAIError) as raised:
                plain.document()
            assert raised.value.status == 500
    assert done > 10
    assert cut > 10


def test_response_that_lacks_a_prompt_of_the_batch_is_an_error() -> None:
    asked = json.dumps({"model": "m", "prompt": ["a", "b"]}).encode()
    plain = parse_completion_request(asked).document_translator(IDENTITY)
    source, _ = Exchange(plain, 2).sources
    source.text("x")
    source.part(GenerateResponse(finishes=[ChoiceFinish(index=0, reason=FINISH_REASON_LENGTH)]))
    with pytest.raises(OpenAIError) as raised:
        plain.document()
    assert raised.value.status == 500
