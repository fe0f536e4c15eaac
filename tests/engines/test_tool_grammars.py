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

from isthmus.v1 import chat_pb2
from tests.engines.generating import chat
from tests.engines.schema_texts import BYTES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.tool_parsers.utils import get_json_schema_from_tools

    from inference.engines.json_schema.grammars import grammar_of, matcher_of
    from inference.engines.vllm_constraints import RuleTranslator

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
