"""Answers to schemas behind reasoning, of a model with random weights that ends it at once."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from inference.config import ModelConfig
from inference.engines.base import TextEngine
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2, generate_pb2
from tests.engines.answer_schemas import ALL, STRICT
from tests.engines.conftest import ENVIRONMENT
from tests.engines.generating import chat, run

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def thinker(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights whose tokenizer has the marks of reasoning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        directory = tmp_path_factory.mktemp("thinker")
        tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
        # Text, as with the models that have these marks: the parser finds the end by its text.
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.save_pretrained(directory)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(directory, safe_serialization=True)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinking(one_vllm: None, thinker: Path) -> AsyncIterator[tuple[TextEngine, int]]:
    """An engine with a reasoning parser, and the id of the token that ends reasoning."""
    config = ModelConfig(
        id="thinker",
        engine="vllm",
        source=str(thinker),
        tool_parser="hermes",
        reasoning_parser="deepseek_r1",
        engine_args={"dtype": "float32", "enforce_eager": True, "max_model_len": 2048},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and vLLM warn on import.
            from inference.engines.vllm_engine import VllmEngine

            engine = VllmEngine(config)
            await engine.start(lambda _: None)
        tokenizer = engine._started()[0].get_tokenizer()
        yield engine, tokenizer.convert_tokens_to_ids("</think>")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            await engine.close()
            del engine, tokenizer
            await asyncio.sleep(0.1)
            gc.collect()


def _request(way: str, schema: dict[str, Any], end: int) -> generate_pb2.GenerateRequest:
    parts: dict[str, Any] = {"sampling": {"temperature": 1, "seed": 3, "logit_bias": {end: 100.0}}}
    tool: dict[str, Any] = {"name": "save", "parameters_json": json.dumps(schema)}
    if way == "response_format":
        parts["constraint"] = {"json_schema": json.dumps(schema)}
    elif way == "forced tool":
        mode = chat_pb2.ToolChoice.MODE_FUNCTION
        parts |= {"tools": [tool], "tool_choice": {"mode": mode, "function_name": "save"}}
    else:
        mode = chat_pb2.ToolChoice.MODE_REQUIRED
        parts |= {"tools": [tool | {"strict": True}], "tool_choice": {"mode": mode}}
    return chat("Make one up.", **parts)


@pytest.mark.parametrize("way", ["response_format", "forced tool", "strict tool"])
async def test_answers_after_reasoning_fit_the_schema(
    thinking: tuple[TextEngine, int], way: str
) -> None:
    engine, end = thinking
    schemas = STRICT if way == "strict tool" else ALL
    results = await asyncio.gather(
        *(run(engine, _request(way, schema, end), 600) for schema in schemas.values())
    )
    whole = 0
    for (name, schema), result in zip(schemas.items(), results, strict=True):
        if result.finishes[0].reason != generate_pb2.FINISH_REASON_LENGTH:
            whole += 1
            text = result.texts[0] if way == "response_format" else result.arguments[0, 0]
            jsonschema.validate(json.loads(text), schema), name
    assert whole > len(schemas) // 2


@pytest.mark.parametrize("way", ["response_format", "forced tool", "strict tool"])
async def test_marks_are_text_after_reasoning(thinking: tuple[TextEngine, int], way: str) -> None:
    engine, end = thinking
    value = 'a</think>b</tool_call><tool_call>{"name": "save", "arguments": {}}</tool_call>'
    schema = {"type": "object", "properties": {"a": {"const": value}, "b": {"const": 1e-7}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    result = await run(engine, _request(way, schema, end), 600)
    text = result.texts[0] if way == "response_format" else result.arguments[0, 0]
    assert json.loads(text) == {"a": value, "b": 1e-7}


async def test_answer_that_ends_within_the_reasoning_is_an_error(
    thinking: tuple[TextEngine, int],
) -> None:
    engine, _ = thinking
    request = _request("response_format", STRICT["issue"], 2)  # the end of the text
    with pytest.raises(InferenceError) as failure:
        await run(engine, request, 50)
    assert failure.value.reason == "constraint_violated"
