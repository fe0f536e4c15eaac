"""The grammars of tool calls that vLLM's parsers describe by one schema of all calls; no engine."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import pytest

from inference.errors import InferenceError
from isthmus.v1 import chat_pb2
from tests.engines.generating import chat
from tests.engines.schema_texts import BYTES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag
    from vllm.tool_parsers.utils import get_json_schema_from_tools

    from inference.engines.json_schema.grammars import grammar_of, matcher_of
    from inference.engines.vllm_constraints import RuleTranslator, parameters_text, promise

_TREE = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "leaf": {"$ref": "#/definitions/Leaf"},
        "twigs": {"type": "array", "items": {"$ref": "#"}},
    },
    "additionalProperties": False,
    "definitions": {"Leaf": {"type": "boolean"}},
}
_RECURSIVE = {
    "type": "object",
    "properties": {"twigs": {"type": "array", "items": {"$ref": "#"}}},
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def rules(smollm2_directory: Path) -> RuleTranslator:
    return RuleTranslator(AutoTokenizer.from_pretrained(smollm2_directory))


def _grammar(rules: RuleTranslator, parameters: dict[str, Any], parallel: bool = True) -> str:
    tools = [{"name": "plant", "parameters_json": json.dumps(parameters)}, {"name": "look"}]
    mode = chat_pb2.ToolChoice.MODE_REQUIRED
    request = chat("?", tools=tools, tool_choice={"mode": mode})
    given = [
        ChatCompletionToolsParam(function={"name": "plant", "parameters": parameters}),
        ChatCompletionToolsParam(function={"name": "look"}),
    ]
    schema = get_json_schema_from_tools("required", given, parallel)
    rule = rules.translate(StructuredOutputsParams(json=schema), request)
    if rule.json is not None:
        return grammar_of(rule.json)
    return str(llguidance.grammar_from("grammar", rule.grammar))


def _allows(grammar: str, text: str) -> bool:
    matcher = matcher_of(BYTES, grammar)
    assert not matcher.is_error()
    return all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()


def _call(arguments: str) -> str:
    return f'{{"name":"plant","parameters":{arguments}}}'


def test_the_root_of_a_tools_schema_is_the_tools_own(rules: RuleTranslator) -> None:
    grammar = _grammar(rules, copy.deepcopy(_RECURSIVE))
    assert _allows(grammar, "[" + _call('{"twigs":[{}]}') + "]")
    calls = "[" + _call("{}") + "]"
    assert not _allows(grammar, "[" + _call('{"twigs":[' + calls + "]}") + "]")


def test_tools_of_an_earlier_draft_are_enforced(rules: RuleTranslator) -> None:
    grammar = _grammar(rules, copy.deepcopy(_TREE))
    assert _allows(grammar, "[" + _call('{"leaf":true}') + "]")
    assert not _allows(grammar, "[" + _call('{"leaf":1}') + "]")


@pytest.mark.parametrize("parallel", [True, False])
def test_one_call_or_several_are_required(rules: RuleTranslator, parallel: bool) -> None:
    grammar = _grammar(rules, {"type": "object", "properties": {}}, parallel)
    one = _call("{}")
    assert _allows(grammar, f"[{one}]")
    assert _allows(grammar, f'[{one},{{"name":"look","parameters":{{}}}}]') == parallel
    assert not _allows(grammar, "[]")
    assert not _allows(grammar, '[{"name":"other","parameters":{}}]')


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("form", ["required", "named", "listed"])
def test_schema_of_free_arguments_is_not_compiled(
    rules: RuleTranslator, monkeypatch: pytest.MonkeyPatch, form: str, guided: bool
) -> None:
    steps = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(20_000)}
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/0"}, "b": {"not": {"const": 1}}},
        "$defs": {**steps, "20000": {"type": "null"}},
    }
    tools = [{"name": "plant", "parameters_json": json.dumps(parameters), "strict": False}]
    forced = chat_pb2.ToolChoice.MODE_FUNCTION, {"function_name": "plant"}
    mode, named = (chat_pb2.ToolChoice.MODE_REQUIRED, {}) if form == "required" else forced
    request = chat("?", tools=tools, tool_choice={"mode": mode, **named})
    schema: Any = parameters
    if form == "required":
        given = ChatCompletionToolsParam(function={"name": "plant", "parameters": parameters})
        schema = get_json_schema_from_tools("required", [given], False)
    elif form == "listed":
        schema = {"type": "array", "items": {"properties": {"arguments": parameters}}}
    monkeypatch.setattr(rules, "guided", guided)
    rule = rules.translate(StructuredOutputsParams(json=schema), request)
    text = rule.json or rule.grammar
    assert '"not"' not in text
    assert '"items":{"$ref"' not in text.replace(" ", "").partition('"$defs"')[0]
    if guided:
        grammar = grammar_of(text) if rule.json else str(llguidance.grammar_from("grammar", text))
        plain = '{"a":[[1]],"b":1}'
        calls = {"required": f"[{_call(plain)}]", "named": plain, "listed": "[]"}
        assert _allows(grammar, calls[form])


def test_arguments_may_have_the_text_of_a_special_token(
    rules: RuleTranslator, smollm2_directory: Path
) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"const": "x<|im_end|>"}},
        "required": ["a"],
    }
    grammar = _grammar(rules, parameters)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    matcher = matcher_of(llguidance.hf.from_tokenizer(tokenizer), grammar)
    text = "[" + _call('{"a":"x<|im_end|>"}') + "]"
    for token in tokenizer.encode(text, split_special_tokens=True):
        # As vLLM does at each step.
        assert matcher.compute_logit_bias()[token]
        assert matcher.consume_token(token), matcher.get_error()
    assert matcher.is_accepting()


_CLOSED = {"type": "object", "additionalProperties": False}
_ANY_TEXT = {"type": "string", "description": "Any."}


@pytest.mark.parametrize(
    ("parser", "properties", "place"),
    [
        ("hy_v4", {"a": _ANY_TEXT, "b": _ANY_TEXT}, None),
        ("hy_v4", {}, None),
        ("hy_v4", {"a": _ANY_TEXT, "b": {"type": "integer"}}, "b"),
        ("hy_v4", {"a": {"type": "string", "enum": ["x"]}}, "a"),
        ("hy_v4", {"a": {"type": "string", "maxLength": 3}}, "a"),
        ("kimi_k3", {"a": _ANY_TEXT, "b": {"type": "integer"}}, None),
        ("kimi_k3", {"a": {"type": "string", "enum": ["x", "y"]}}, None),
        ("kimi_k3", {"a": {"type": ["integer", "null"]}}, "a"),
        ("kimi_k3", {"a": _ANY_TEXT, "b": {"anyOf": [{"type": "integer"}]}}, "b"),
        ("kimi_k3", {"a": {"type": "string", "enum": ["<|x|>"]}}, "a"),
        ("glm_4_7", {"a": {"type": "integer"}, "b": {"type": "string", "enum": ["x"]}}, None),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_argument_that_a_model_writes_as_any_text_has_no_schema_to_obey(
    rules: RuleTranslator,
    parser: str,
    properties: dict[str, Any],
    place: str | None,
    choice: str,
) -> None:
    parameters = _CLOSED | {"properties": properties, "required": list(properties)}
    strict = {"name": "plant", "parameters_json": json.dumps(parameters), "strict": True}
    free = {"name": "plants", "parameters_json": "{}", "strict": False}
    mode = {"auto": chat_pb2.ToolChoice.MODE_AUTO, "required": chat_pb2.ToolChoice.MODE_REQUIRED}
    request = chat("?", tools=[strict, free], tool_choice={"mode": mode[choice]})
    given = [
        ChatCompletionToolsParam(
            function={"name": "plant", "parameters": parameters, "strict": True}
        ),
        ChatCompletionToolsParam(function={"name": "plants", "parameters": {}, "strict": False}),
    ]
    tag = get_model_structural_tag(parser, tools=given, tool_choice=choice, reasoning=False)
    rule = StructuredOutputsParams(structural_tag=json.dumps(tag.model_dump()))
    if place is None:
        assert rules.translate(rule, request).structural_tag
        return
    with pytest.raises(InferenceError) as refusal:
        rules.translate(rule, request)
    assert f"parameters.properties.{place}'" in refusal.value.message


@pytest.mark.parametrize("guided", [True, False])
def test_keyword_that_is_null_is_not_there(
    rules: RuleTranslator, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    parameters: dict[str, Any] = {
        "type": None,
        "properties": {"a": {"type": "null", "enum": None, "properties": None}},
        "required": None,
        "additionalProperties": None,
    }
    request = chat(
        "?",
        tools=[{"name": "plant", "parameters_json": json.dumps(parameters)}],
        tool_choice={"mode": chat_pb2.ToolChoice.MODE_FUNCTION, "function_name": "plant"},
    )
    monkeypatch.setattr(rules, "guided", guided)
    promise(request)
    schema = json.loads(parameters_text(request.chat.tools[0], 0))
    assert schema == {"type": "object", "properties": {"a": {"type": "null"}}}
    rule = rules.translate(StructuredOutputsParams(json=schema), request)
    assert rule.json
    if guided:
        assert _allows(grammar_of(rule.json), '{"a":null}')
        assert not _allows(grammar_of(rule.json), "null")
    constrained = chat("?", constraint={"json_schema": json.dumps(parameters | {"type": "object"})})
    given = StructuredOutputsParams(json=constrained.constraint.json_schema)
    assert "required" not in json.loads(rules.translate(given, constrained).json)
