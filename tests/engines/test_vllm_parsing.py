"""vLLM's tool and reasoning parsers on given output, for any number of tokens a step; no engine.

The tokenizer is the model's own, with two unused tokens renamed to <think> and </think>. The output
passes through vLLM's detokenizer.
"""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isthmus.v1 import chat_pb2, generate_pb2
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.engines.generating import Result, chat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.renderers.registry import renderer_from_config
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from inference.engines.vllm_input import PromptRenderer
    from inference.engines.vllm_logprobs import Vocabulary
    from inference.engines.vllm_output import OutputPlan, OutputTranslator

_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🦩"}}\n</tool_call>'
_SECOND = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
_TOOLS = [{"name": "get_weather"}, {"name": "get_time"}]
_STEP_SIZES = (1, 2, 3, 7, 1000)


@pytest.fixture(scope="module")
def directory(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and configuration of a model with the tokens <think> and </think>."""
    target = tmp_path_factory.mktemp("thinking")
    for source in smollm2_directory.iterdir():
        if source.suffix == ".safetensors":
            continue
        text = source.read_text()
        if source.name == "tokenizer.json":
            tokenizer = json.loads(text)
            vocabulary = tokenizer["model"]["vocab"]
            for old, new in (("<reponame>", "<think>"), ("<file_sep>", "</think>")):
                (token,) = (item for item in tokenizer["added_tokens"] if item["content"] == old)
                token.update(content=new, special=False)
                vocabulary[new] = vocabulary.pop(old)
            text = json.dumps(tokenizer, ensure_ascii=False)
        for special in ("<reponame>", "<file_sep>"):
            text = text.replace(f'"{special}",', "")
        (target / source.name).write_text(text)
    return target


@pytest.fixture(scope="module")
def renderer(directory: Path) -> Iterator[Callable[..., PromptRenderer]]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        arguments = AsyncEngineArgs(model=str(directory), enforce_eager=True, max_model_len=2048)
        config = arguments.create_engine_config()
        base = renderer_from_config(config)

        def create(reasoning_parser: str | None = None) -> PromptRenderer:
            online = OnlineRenderer(
                config.model_config,
                base,
                request_logger=None,
                chat_template=None,
                chat_template_content_format="auto",
                enable_auto_tools=True,
                tool_parser="hermes",
                reasoning_parser=reasoning_parser,
            )
            return PromptRenderer(online, _vocabulary(base.get_tokenizer()))

        yield create
        base.shutdown()


@functools.cache
def _vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, 49152)


async def parsed(
    prompts: PromptRenderer,
    request: GenerateRequest,
    answer: str | list[int],
    step_size: int,
    finish: str = "stop",
    first_steps: int = 0,
) -> Result:
    """Parses `answer` as model output: `first_steps` tokens one by one, then `step_size` a step."""
    prompt = await prompts.render_chat(request, None, True)
    tokenizer = prompts._renderer.get_tokenizer()
    params = SamplingParams(
        stop=list(request.stopping.strings), skip_special_tokens=prompt.skip_special_tokens
    )
    said = SimpleNamespace(
        request_id="1", prompt_token_ids=prompt.token_ids, sampling_params=params
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, said)
    plan = OutputPlan(
        request=request,
        prompt_tokens=len(prompt.token_ids),
        single_call=request.chat.HasField("parallel_tool_calls")
        and not request.chat.parallel_tool_calls,
        skip_special_tokens=prompt.skip_special_tokens,
        parsing=prompt.parsing,
    )
    translator = OutputTranslator(plan, _vocabulary(tokenizer))
    tokens = (
        tokenizer.encode(answer, add_special_tokens=False) if isinstance(answer, str) else answer
    )
    first_steps = min(first_steps, len(tokens))
    starts = [*range(first_steps), *range(first_steps, len(tokens), step_size)]
    result = Result()
    stopped = None
    for start, end in itertools.zip_longest(starts, starts[1:]):
        new = tokens[start:end]
        stopped = detokenizer.update(new, False)
        ended = end is None or stopped is not None
        output = SimpleNamespace(
            index=0,
            text=detokenizer.get_next_output_text(ended, True),
            token_ids=new,
            finish_reason=("stop" if stopped else finish) if ended else None,
            stop_reason=stopped,
            logprobs=None,
        )
        step = SimpleNamespace(
            outputs=[output], finished=ended, num_cached_tokens=0, prompt_logprobs=None
        )
        if (event := translator.feed(step)) is not None:
            result.take(event)
        if ended:
            break
    assert result.usage is not None
    return result


@pytest.mark.parametrize("step_size", _STEP_SIZES)
async def test_tool_calls_are_parsed_for_any_step_size(renderer: Any, step_size: int) -> None:
    answer = f"Let me look.\n{_CALL}\n{_SECOND}"
    result = await parsed(renderer(), chat("?", tools=_TOOLS), answer, step_size)
    assert result.texts[0].strip() == "Let me look."
    assert result.names == {(0, 0): "get_weather", (0, 1): "get_time"}
    assert json.loads(result.arguments[0, 0]) == {"city": "Zürich 🦩"}
    assert json.loads(result.arguments[0, 1]) == {}
    assert len(set(result.ids.values())) == 2
    assert all(call_id.startswith("call_") for call_id in result.ids.values())
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_TOOL_CALLS


async def test_only_one_tool_call_is_sent_without_parallel_tool_calls(renderer: Any) -> None:
    request = chat("?", tools=_TOOLS)
    request.chat.parallel_tool_calls = False
    result = await parsed(renderer(), request, f"{_CALL}\n{_SECOND}", 1)
    assert result.names == {(0, 0): "get_weather"}


@pytest.mark.parametrize("step_size", _STEP_SIZES)
@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>\nnot JSON at all\n</tool_call>",
        "First.\n<tool_call>\n{}\n</tool_call> and more",
        "It is a <tool",
        "<tool_call>",
    ],
)
async def test_output_without_a_valid_tool_call_is_text(
    renderer: Any, answer: str, finish: str, step_size: int
) -> None:
    result = await parsed(renderer(), chat("?", tools=_TOOLS), answer, step_size, finish)
    assert result.texts[0] == answer
    assert not result.names
    reasons = {
        "stop": generate_pb2.FINISH_REASON_STOP,
        "length": generate_pb2.FINISH_REASON_LENGTH,
    }
    assert result.finishes[0].reason == reasons[finish]


async def test_incomplete_forced_tool_call_sends_no_text(renderer: Any) -> None:
    choice = {"mode": chat_pb2.ToolChoice.MODE_REQUIRED}
    request = chat("?", tools=_TOOLS, tool_choice=choice)
    result = await parsed(renderer(), request, '<tool_call>\n{"na', 1, "length")
    assert not result.texts.get(0)
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("step_size", _STEP_SIZES)
@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("opening", ["<think>", ""], ids=["tag-in-output", "tag-in-template"])
@pytest.mark.parametrize("stop", [[], ["never to be seen"]], ids=["", "stop"])
async def test_reasoning_is_separated_from_the_text(
    renderer: Any, parser: str, opening: str, stop: list[str], step_size: int
) -> None:
    request = chat("?", stopping={"strings": stop})
    answer = f"{opening}Hmm, größer 🦩?</think>It is 4."
    result = await parsed(renderer(parser), request, answer, step_size)
    assert result.reasoning[0] == "Hmm, größer 🦩?"
    assert result.texts[0] == "It is 4."
    assert result.usage is not None
    assert 8 <= result.usage.reasoning_tokens <= result.usage.completion_tokens - 5


async def test_hidden_reasoning_is_counted_and_not_sent(renderer: Any) -> None:
    request = chat("?", output={"hide_reasoning": True})
    answer = "<think>Hmm, so many words.</think>It is 4."
    result = await parsed(renderer("deepseek_r1"), request, answer, 1)
    assert not result.reasoning[0]
    assert result.texts[0] == "It is 4."
    assert result.usage is not None
    assert result.usage.reasoning_tokens >= 5
    # A caller that waits for output is told that there is some.
    assert result.pieces.count("") >= 5


@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("first_steps", range(1, 14))
async def test_large_step_after_a_partial_character_is_parsed(
    renderer: Any, parser: str, first_steps: int
) -> None:
    answer = "<think>Wave 👋🦩</think>Hello 🦩 there"
    result = await parsed(renderer(parser), chat("?"), answer, 1000, first_steps=first_steps)
    assert (result.reasoning[0], result.texts[0]) == ("Wave 👋🦩", "Hello 🦩 there")


@pytest.mark.parametrize("step_size", _STEP_SIZES)
@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("stop", [[], ["never to be seen"]], ids=["", "stop"])
@pytest.mark.parametrize("data", [b"\xa6", b"\xf0", b"\xa6\xa6\xf0"], ids=bytes.hex)
async def test_invalid_bytes_do_not_move_the_end_of_reasoning(
    renderer: Any, parser: str, stop: list[str], step_size: int, data: bytes
) -> None:
    prompts = renderer(parser)
    tokenizer = prompts._renderer.get_tokenizer()
    known = _vocabulary(tokenizer)
    of_byte = {known.data(token): token for token in range(known.size)}
    before, after = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in ("<think>Wave", " to all of them</think>Hello there my dear friend.")
    )
    answer = [*before, *(of_byte[bytes([byte])] for byte in data), *after]
    request = chat("?", stopping={"strings": stop})
    result = await parsed(prompts, request, answer, step_size)
    assert result.reasoning[0] == f"Wave{data.decode(errors='replace')} to all of them"
    assert result.texts[0] == "Hello there my dear friend."


@pytest.mark.parametrize("step_size", _STEP_SIZES)
async def test_stop_string_ends_the_text_after_reasoning(renderer: Any, step_size: int) -> None:
    request = chat("?", stopping={"strings": ["four", "is 4"]})
    answer = "<think>Hmm.</think>So it is 4."
    result = await parsed(renderer("deepseek_r1"), request, answer, step_size)
    assert (result.reasoning[0], result.texts[0]) == ("Hmm.", "So it ")
    assert result.finishes[0].stop_string == "is 4"


@pytest.mark.parametrize("step_size", _STEP_SIZES)
async def test_tool_call_after_reasoning_is_parsed(renderer: Any, step_size: int) -> None:
    request = chat("?", tools=_TOOLS)
    answer = f"<think>Hmm.</think>{_CALL}"
    result = await parsed(renderer("deepseek_r1"), request, answer, step_size)
    assert result.reasoning[0] == "Hmm."
    assert result.names == {(0, 0): "get_weather"}
    assert json.loads(result.arguments[0, 0]) == {"city": "Zürich 🦩"}


@pytest.mark.parametrize("step_size", _STEP_SIZES)
@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("value", ["x</think>y", "x<think>y</think>", "</think>"])
async def test_marks_of_reasoning_in_the_arguments_of_a_call_are_text(
    renderer: Any, parser: str, value: str, step_size: int
) -> None:
    request = chat("?", tools=_TOOLS)
    call = json.dumps({"name": "get_weather", "arguments": {"city": value}})
    answer = f"<think>Hmm.</think><tool_call>\n{call}\n</tool_call>"
    result = await parsed(renderer(parser), request, answer, step_size)
    assert result.reasoning[0] == "Hmm."
    assert json.loads(result.arguments[0, 0]) == {"city": value}


@pytest.mark.parametrize("step_size", _STEP_SIZES)
@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>", ""),
        ("<think></think>", ""),
        ("</think>", ""),
        ("<think></think>Hi", "Hi"),
        ("<think></think>Hi <tool_call>\nno JSON", "Hi <tool_call>\nno JSON"),
    ],
)
async def test_reasoning_tags_are_not_sent_as_text(
    renderer: Any, parser: str, answer: str, text: str, finish: str, step_size: int
) -> None:
    request = chat("?", tools=_TOOLS)
    result = await parsed(renderer(parser), request, answer, step_size, finish)
    assert (result.texts.get(0, ""), result.reasoning.get(0, "")) == (text, "")
    assert not result.names


async def test_reasoning_in_the_history_does_not_affect_parsing(renderer: Any) -> None:
    request = chat("?")
    request.chat.messages.add(role=chat_pb2.ROLE_ASSISTANT, parts=[{"text": "4"}], reasoning="Hm")
    request.chat.messages.add(role=chat_pb2.ROLE_USER, parts=[{"text": "Sure?"}])
    result = await parsed(renderer("deepseek_r1"), request, "Yes</think>4", 1)
    assert (result.reasoning[0], result.texts[0]) == ("Yes", "4")
