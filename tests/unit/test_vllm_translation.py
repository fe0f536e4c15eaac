"""Requests translated for vLLM and log probabilities translated from it, without an engine."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from edge.openai.chat import schema as chat_schema
from edge.openai.completions import schema as completion_schema
from edge.openai.embeddings import schema as embeddings
from edge.openai.text import schema
from edge.openai.text.logprobs import TextPosition, completion_logprobs
from inference.config import ModelConfig
from inference.engines.base import Terms
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import GenerateRequest, Logprobs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.entrypoints.generate.base import protocol as shared_protocol
    from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
    from vllm.entrypoints.openai.completion import protocol as completion_protocol
    from vllm.entrypoints.pooling.embed import protocol as embed_protocol
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    from inference.engines.vllm_chat import RenderableChat, characters, chat_request
    from inference.engines.vllm_engine import PreparedGeneration, VllmEngine
    from inference.engines.vllm_input import Prompt, PromptRenderer
    from inference.engines.vllm_logprobs import LogprobStream, Vocabulary
    from inference.engines.vllm_output import OutputPlan
    from inference.engines.vllm_sampling import sampling_params, structured_outputs

# vLLM's class -> our schema of the same object.
_SCHEMAS = {
    chat_protocol.ChatCompletionRequest: chat_schema.ChatRequest,
    completion_protocol.CompletionRequest: completion_schema.CompletionRequest,
    embed_protocol.EmbeddingCompletionRequest: embeddings.EmbeddingsRequest,
    shared_protocol.StreamOptions: schema.StreamOptions,
    shared_protocol.JsonSchemaResponseFormat: schema.JsonSchema,
    StructuredOutputsParams: schema.StructuredOutputs,
    chat_protocol.ChatCompletionToolsParam: chat_schema.FunctionTool,
    shared_protocol.FunctionDefinition: chat_schema.Function,
}


class _Words:
    """A tokenizer of a class that xgrammar does not support; token i is `pieces[i]`."""

    all_special_ids = (0,)
    pieces = ("<end>", "one", " two", " three", "END")

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(_Words(), 5)


@pytest.mark.parametrize(("theirs", "ours"), _SCHEMAS.items(), ids=lambda kind: kind.__name__)
def test_every_parameter_of_vllms_requests_is_in_our_schema(theirs: Any, ours: Any) -> None:
    """A parameter that a new vLLM adds must be supported or refused by name."""
    if issubclass(theirs, BaseModel):
        names = {field.alias or name for name, field in theirs.model_fields.items()}
    else:
        names = {field.name for field in dataclasses.fields(theirs) if field.init}
    known = {field.encode_name for field in msgspec.structs.fields(ours)}
    assert names - known <= {ours.__struct_config__.tag_field}


def _found(token: int, **others: float) -> dict[int, Any]:
    values = {token: -0.5} | {int(key[1:]): value for key, value in others.items()}
    return {key: SimpleNamespace(logprob=value, rank=None) for key, value in values.items()}


def _joined(*parts: Logprobs | None) -> bytes:
    return b"".join(item.token.data for part in parts if part for item in part.tokens)


@pytest.mark.parametrize(
    ("text", "tokens", "pieces"),
    [
        ("one two", [1, 2], [b"one", b" two"]),
        ("one", [0, 1, 0], [b"", b"one", b""]),  # the tokenizer adds <end> at both ends
        ("two", [0, 2], [b"", b"two"]),  # it puts a space in front
        ("<end>one", [0, 1], [b"<end>", b"one"]),
        ("One", [1], [b"one"]),  # it writes all in lower case
    ],
)
def test_tokens_of_a_prompt_have_their_part_of_its_text(
    vocabulary: Vocabulary, text: str, tokens: list[int], pieces: list[bytes]
) -> None:
    assert vocabulary.pieces(tokens, text) == pieces


def test_added_tokens_marked_as_special_are_special() -> None:
    tokenizer = _Words()
    tokenizer.added_tokens_decoder = {
        3: SimpleNamespace(special=True),
        4: SimpleNamespace(special=False),
    }
    assert Vocabulary(tokenizer, 5).special_ids == {0, 3}


@pytest.mark.parametrize("skipped", [True, False])
def test_special_token_is_listed_once_under_one_name(vocabulary: Vocabulary, skipped: bool) -> None:
    stream = LogprobStream(vocabulary, 2, cut=False, blank_special=skipped)
    stream.add("" if skipped else "<end>", [0], [_found(0, _1=-1.0)])
    logprobs = stream.take()
    assert logprobs is not None
    (item,) = logprobs.tokens
    name = "" if skipped else "<end>"
    assert item.token.text == name
    assert [entry.text for entry in item.top] == [name, "one"]
    rendered = completion_logprobs(logprobs.tokens, 2, TextPosition(0))
    assert rendered.tokens == [name]
    assert rendered.top_logprobs == [{name: -0.5, "one": -1.0}]


def test_top_logprobs_are_sorted_limited_and_finite(vocabulary: Vocabulary) -> None:
    stream = LogprobStream(vocabulary, 2, cut=False, blank_special=True)
    stream.add("one", [1], [_found(1, t2=-math.inf, t3=-0.1)])
    logprobs = stream.take()
    assert logprobs is not None
    (item,) = logprobs.tokens
    assert (item.token.id, item.token.text, item.token.data) == (1, "one", b"one")
    assert [entry.id for entry in item.top] == [3, 1]
    stream.add(" two", [2], [_found(2, t1=-math.inf)])
    logprobs = stream.take()
    assert logprobs is not None
    assert logprobs.tokens[0].top[1].logprob == -9999.0


def test_logprobs_are_held_until_their_text_is_sent(vocabulary: Vocabulary) -> None:
    stream = LogprobStream(vocabulary, 0, cut=True, blank_special=True)
    stream.add("on", [1], [_found(1)])
    assert stream.take() is None
    stream.add("e tw", [2], [_found(2)])
    first = stream.take()
    assert _joined(first) == b"one"
    # The stop string began inside the second token and ended with the third.
    stream.add("", [3], [_found(3)])
    assert _joined(first, stream.take(ended=True, ended_by_string=True)) == b"one tw"


def test_tokens_without_text_add_no_logprob_bytes(vocabulary: Vocabulary) -> None:
    stream = LogprobStream(vocabulary, 0, cut=False, blank_special=True)
    stream.add("one", [1, 0, 4], [_found(1), _found(0), _found(4)])
    stream.drop_last()
    logprobs = stream.take(ended=True)
    assert _joined(logprobs) == b"one"
    assert logprobs is not None
    assert len(logprobs.tokens) == 2


def _params(**parts: Any) -> Any:
    request = GenerateRequest(**parts)
    return sampling_params(request, defaults={}, rule=None, skip_special_tokens=True)


def test_default_sampling_parameters_are_openais() -> None:
    params = _params()
    assert (params.temperature, params.top_p, params.top_k, params.n) == (1.0, 1.0, 0, 1)
    assert params.max_tokens is None
    assert params.logprobs is None
    assert params.prompt_logprobs is None


def test_request_overrides_the_models_default_sampling_parameters() -> None:
    request = GenerateRequest(sampling={"temperature": 0.25})
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_tokens": 3}
    params = sampling_params(request, defaults=defaults, rule=None, skip_special_tokens=True)
    assert (params.temperature, params.top_p, params.top_k) == (0.25, 0.9, 20)
    assert params.max_tokens is None


def test_every_sampling_and_stopping_field_reaches_vllm() -> None:
    params = _params(
        sampling={
            "temperature": 0.5,
            "top_p": 0.75,
            "top_k": 7,
            "min_p": 0.125,
            "presence_penalty": -1.0,
            "frequency_penalty": 1.5,
            "repetition_penalty": 1.25,
            "seed": 11,
            "logit_bias": {5: -100.0},
        },
        stopping={
            "min_tokens": 2,
            "strings": ["x"],
            "token_ids": [9],
            "ignore_eos": True,
            "include_stop_string": True,
        },
        output={"n": 2, "best_of": 3, "logprobs": 4, "prompt_logprobs": 1},
    )
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.75, 7, 0.125)
    assert (params.presence_penalty, params.frequency_penalty) == (-1.0, 1.5)
    assert (params.repetition_penalty, params.seed) == (1.25, 11)
    assert params.logit_bias == {5: -100.0}
    assert (params.min_tokens, params.stop, params.stop_token_ids) == (2, ["x"], [9])
    assert params.ignore_eos
    assert params.include_stop_str_in_output
    assert (params.n, params.logprobs, params.prompt_logprobs) == (3, 4, 1)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.0}], ids=str)
def test_greedy_sampling_generates_one_choice(sampling: dict[str, float]) -> None:
    params = _params(sampling=sampling, output={"n": 4})
    assert (params.temperature, params.top_p, params.n) == (0.0, 1.0, 1)


def test_very_low_temperature_is_raised_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.sampling_params.logger", None)
    assert _params(sampling={"temperature": 0.001}).temperature == 0.01


def test_negative_seeds_are_used() -> None:
    assert _params(sampling={"seed": -1}).seed is not None
    assert _params(sampling={"seed": -(2**63)}).seed == -(2**63)


def test_constraint_reaches_vllm_and_output_kind_is_delta() -> None:
    rule = StructuredOutputsParams(regex="a+")
    params = sampling_params(GenerateRequest(), defaults={}, rule=rule, skip_special_tokens=True)
    assert params.structured_outputs is rule
    assert params.output_kind is RequestOutputKind.DELTA


def test_best_of_requests_logprobs_from_vllm() -> None:
    assert _params(output={"n": 1, "best_of": 2}).logprobs == 0


def test_constraints_become_structured_outputs() -> None:
    def rule(**constraint: Any) -> StructuredOutputsParams | None:
        return structured_outputs(GenerateRequest(constraint=constraint).constraint)

    schema, some = rule(json_schema='{"type": "object"}'), rule(choices={"values": ["a", "b"]})
    assert schema is not None
    assert schema.json == '{"type": "object"}'
    assert some is not None
    assert some.choice == ["a", "b"]
    assert rule() is None
    assert rule(json_object=False) is None


def _chat(calls_tools: bool = True, **parts: Any) -> RenderableChat:
    parts.setdefault("messages", [{"role": chat_pb2.ROLE_USER, "parts": [{"text": "Hi"}]}])
    return chat_request(
        chat_pb2.ChatInput(**parts),
        structured_outputs=None,
        skip_special_tokens=True,
        cache_salt=None,
        takes_media=False,
        calls_tools=calls_tools,
    )


def test_messages_are_translated_to_vllms_format() -> None:
    call = {"id": "call_1", "name": "f", "arguments": '{"x": 1}'}
    chat = _chat(
        messages=[
            {"role": chat_pb2.ROLE_DEVELOPER, "parts": [{"text": "Be "}, {"text": "brief."}]},
            {"role": chat_pb2.ROLE_USER, "parts": [{"text": "Hi"}], "name": "ann"},
            {"role": chat_pb2.ROLE_ASSISTANT, "tool_calls": [call]},
            {"role": chat_pb2.ROLE_TOOL, "parts": [{"text": "2"}], "tool_call_id": "call_1"},
        ]
    )
    system, user, assistant, tool = chat.messages
    assert (system["role"], system["content"]) == ("system", "Be brief.")
    assert (user["content"], user["name"]) == ("Hi", "ann")
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert (tool["content"], tool["tool_call_id"]) == ("2", "call_1")


def test_constraint_cache_salt_and_special_tokens_reach_the_chat_request() -> None:
    rule = StructuredOutputsParams(regex="a+")
    chat = chat_request(
        chat_pb2.ChatInput(messages=[{"role": chat_pb2.ROLE_USER, "parts": [{"text": "Hi"}]}]),
        structured_outputs=rule,
        skip_special_tokens=False,
        cache_salt="s",
        takes_media=False,
        calls_tools=True,
    )
    assert (chat.skip_special_tokens, chat.cache_salt, chat.stream) == (False, "s", True)
    assert chat.extract_structured_outputs() == rule
    # The chat template writes the special tokens, so the tokenizer must not add them.
    assert not chat.build_tok_params(None).add_special_tokens


def test_characters_counts_every_field_that_may_be_rendered() -> None:
    chat = chat_pb2.ChatInput(
        messages=[
            {"name": "x" * 1, "reasoning": "x" * 20, "tool_call_id": "x" * 300},
            {"parts": [{"text": "x" * 4000}, {"refusal": "x" * 50_000}]},
            {"tool_calls": [{"id": "x" * 600_000, "name": "x" * 7_000_000}]},
        ],
        tools=[{"name": "x" * 1, "description": "x" * 20, "parameters_json": "x" * 300}],
    )
    chat.messages[0].tool_calls.add(arguments="é" * 80_000_000)
    assert characters(chat) == 87_654_321 + 321
    chat.tool_choice.mode = chat_pb2.ToolChoice.MODE_NONE
    assert characters(chat) == 87_654_321


_TOOLS = [{"name": "f"}, {"name": "g", "parameters_json": '{"properties": {"b": {}, "a": {}}}'}]


def test_tool_choice_is_auto_by_default() -> None:
    chat = _chat(tools=_TOOLS)
    assert chat.tool_choice == "auto"
    assert [tool.function.name for tool in chat.tools] == ["f", "g"]
    assert list(chat.tools[1].function.parameters["properties"]) == ["b", "a"]
    assert chat.tools[0].function.parameters == {"type": "object", "properties": {}}
    assert chat.tools[1].function.parameters["type"] == "object"
    assert chat.tools[0].function.strict is None
    assert chat.parallel_tool_calls
    assert not _chat(tools=_TOOLS, parallel_tool_calls=False).parallel_tool_calls


def test_forced_tool_call_uses_a_strict_schema() -> None:
    choice = {"mode": chat_pb2.ToolChoice.MODE_FUNCTION, "function_name": "g"}
    chat = _chat(tools=_TOOLS, tool_choice=choice)
    assert chat.tool_choice.function.name == "g"
    assert all(tool.function.strict for tool in chat.tools)
    loose = _chat(tools=[_TOOLS[1] | {"strict": False}], tool_choice=choice)
    assert loose.tools[0].function.strict is False


def test_disallowed_tools_are_not_rendered() -> None:
    none = {"mode": chat_pb2.ToolChoice.MODE_NONE}
    assert _chat(tools=_TOOLS, tool_choice=none).tools is None
    some = {"mode": chat_pb2.ToolChoice.MODE_REQUIRED, "allowed_functions": ["g"]}
    chat = _chat(tools=_TOOLS, tool_choice=some)
    assert [tool.function.name for tool in chat.tools] == ["g"]
    assert chat.tool_choice == "required"


@pytest.mark.parametrize(
    ("parts", "reason", "param"),
    [
        ({"tools": _TOOLS, "calls_tools": False}, "unsupported_parameter", "tools"),
        (
            {"tools": [{"name": "f", "parameters_json": "[]"}]},
            "invalid_function_parameters",
            "tools[0].function.parameters",
        ),
        ({"reasoning_effort": "immense"}, "invalid_value", "reasoning_effort"),
        ({"template_arguments_json": "5"}, "invalid_value", "chat_template_kwargs"),
        (
            {"template_arguments_json": json.dumps({"tokenize": True})},
            "unsupported_parameter",
            "chat_template_kwargs.tokenize",
        ),
        (
            {"messages": [{"role": chat_pb2.ROLE_USER, "parts": [{"file": {"data": b"x"}}]}]},
            "unsupported_value",
            "messages",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_chat_names_the_parameter(parts: dict[str, Any], reason: str, param: str) -> None:
    with pytest.raises(InferenceError) as refusal:
        _chat(**parts)
    assert (refusal.value.reason, refusal.value.param) == (reason, param)


async def test_image_that_only_its_decoder_finds_broken_is_an_invalid_message(
    vocabulary: Vocabulary,
) -> None:
    async def render_chat(_chat: object) -> None:
        raise SyntaxError("broken PNG file")  # What Pillow raises, and vLLM does not convert.

    tokenizer = SimpleNamespace(max_chars_per_token=8)
    online: Any = SimpleNamespace(
        renderer=SimpleNamespace(
            render_completion_suffix=lambda *_: None, get_tokenizer=lambda: tokenizer
        ),
        model_config=SimpleNamespace(is_multimodal_model=False, max_model_len=100),
        parser=None,
        render_chat=render_chat,
    )
    request = GenerateRequest()
    request.chat.messages.add(role=chat_pb2.ROLE_USER).parts.add(text="x")
    with pytest.raises(InferenceError) as caught:
        await PromptRenderer(online, vocabulary).render_chat(request, None, True)
    assert caught.value.param == "messages"


async def test_echo_is_emitted_with_the_first_step_and_not_before_the_prompt_has_run() -> None:
    emitted: list[Any] = []

    async def steps(*_: object, **__: object) -> AsyncIterator[Any]:
        assert emitted == []
        part = SimpleNamespace(token_ids=[1], text="y", finish_reason=None)
        yield SimpleNamespace(outputs=[part])

    engine = VllmEngine(ModelConfig(id="m", engine="vllm", source="x"))
    fake: Any = SimpleNamespace(
        get_num_unfinished_requests=lambda: 1, generate=steps, errored=False
    )
    anything: Any = object()
    engine._engine, engine._prompts, engine._vocabulary = fake, anything, anything
    prepared = PreparedGeneration(
        prompt=Prompt(engine_input=None, token_ids=[1], rule=None, skip_special_tokens=True),
        params=SamplingParams(),
        plan=OutputPlan(GenerateRequest(text="x"), prompt_tokens=1, echo="x"),
        terms=Terms(100),
        max_output_tokens=1,
    )
    await engine.generate(prepared, emitted.append)
    assert emitted == ["x", "y"]
