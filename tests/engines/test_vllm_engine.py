"""The vLLM engine with a real model: everything here is generated, nothing is simulated."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.engines.base import EngineDeadError, TextEngine
from inference.errors import InferenceError
from inference.server import InferenceServer
from isthmus.v1 import chat_pb2, generate_pb2
from isthmus.v1.generate_pb2 import ChoiceFinish, GenerateRequest, GenerateResponse, TokenLogprob
from isthmus.v1.usage_pb2 import Usage
from tests.conftest import eventually

# A start takes half a minute on an idle machine.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    # vLLM leaves this to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
}
_WEATHER = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2_directory: Path) -> AsyncIterator[TextEngine]:
    config = ModelConfig(
        id="smollm2",
        engine="vllm",
        source=str(smollm2_directory),
        tool_parser="hermes",
        allow_patterns=True,
        engine_args={
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            # Long prompts are read in several steps, as they are on larger models.
            "max_num_batched_tokens": 128,
            "max_num_seqs": 32,
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and vLLM warn about themselves.
            from inference.engines.vllm_engine import VllmEngine

            started = VllmEngine(config)
            said: list[str] = []
            await started.start(said.append)
        assert said, "a start of half a minute must say what it does"
        yield started
        await started.close()
        await started.close()
        assert not started.health().alive
        del started
        gc.collect()


@dataclass
class Result:
    """All that one request yielded."""

    texts: dict[int, str] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    arguments: dict[tuple[int, int], str] = field(default_factory=dict)
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    ids: dict[tuple[int, int], str] = field(default_factory=dict)
    finishes: dict[int, ChoiceFinish] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    prompt: list[TokenLogprob] = field(default_factory=list)
    usage: Usage | None = None
    plain: int = 0

    def take(self, event: str | GenerateResponse) -> None:
        assert self.usage is None, "nothing follows usage"
        if isinstance(event, str):
            assert event, "empty output is not yielded"
            self.plain += 1
            self._text(0, event)
            return
        assert event.ByteSize(), "empty output is not yielded"
        self.prompt.extend(event.prompt_logprobs.tokens)
        for delta in event.deltas:
            assert delta.HasField("index")
            assert delta.index not in self.finishes
            self._text(delta.index, delta.text)
            self.logprobs.setdefault(delta.index, []).extend(delta.logprobs.tokens)
            self.token_ids.setdefault(delta.index, []).extend(delta.token_ids)
            for call in delta.tool_calls:
                key = (delta.index, call.index)
                assert key not in self.names or not (call.id or call.name)
                if key not in self.names:
                    self.names[key], self.ids[key] = call.name, call.id
                self.arguments[key] = self.arguments.get(key, "") + call.arguments
        for finish in event.finishes:
            assert finish.HasField("index")
            assert finish.index not in self.finishes, "one finish a choice"
            self.finishes[finish.index] = finish
        if event.HasField("usage"):
            self.usage = event.usage

    def _text(self, index: int, text: str) -> None:
        self.texts[index] = self.texts.get(index, "") + text
        self.pieces.append(text)


async def run(engine: TextEngine, request: GenerateRequest, max_tokens: int = 64) -> Result:
    prepared = await engine.prepare(request)
    result = Result()
    async with aclosing(engine.generate(prepared, max_tokens, 0)) as events:
        async for event in events:
            result.take(event)
    assert result.usage is not None
    assert result.usage.prompt_tokens == prepared.prompt_tokens
    return result


def chat(text: str, **parts: Any) -> GenerateRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[{"text": text}])
    parts.setdefault("sampling", {"temperature": 0})
    tools = parts.pop("tools", None)
    choice = parts.pop("tool_choice", None)
    return GenerateRequest(
        chat=chat_pb2.ChatInput(messages=[message], tools=tools, tool_choice=choice), **parts
    )


def text(prompt: str, **parts: Any) -> GenerateRequest:
    parts.setdefault("sampling", {"temperature": 0})
    return GenerateRequest(text=prompt, **parts)


def joined(tokens: list[TokenLogprob]) -> bytes:
    return b"".join(item.token.data for item in tokens)


async def test_a_chat_answers_in_plain_text(engine: TextEngine) -> None:
    result = await run(engine, chat("What is the capital of France?"))
    assert "Paris" in result.texts[0]
    assert result.plain > 1
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP
    assert result.finishes[0].WhichOneof("matched") == "end_of_text"
    assert result.usage is not None
    assert result.usage.completion_tokens >= result.plain


async def test_the_model_tells_what_it_can_do(engine: TextEngine) -> None:
    model = engine.model
    assert model.context_length == 2048
    assert model.created > 1_600_000_000
    assert (model.text.chat, model.text.tools) == (True, True)
    assert (model.text.reasoning, model.text.suffix) == (False, False)
    assert model.text.vocabulary_size == 49152
    assert engine.system_fingerprint.startswith("fp_")


async def test_developer_is_system_and_parts_are_joined(engine: TextEngine) -> None:
    def of(role: chat_pb2.Role, *parts: str) -> GenerateRequest:
        first = chat_pb2.ChatMessage(role=role, parts=[{"text": part} for part in parts])
        user = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[{"text": "Hi"}])
        return GenerateRequest(chat=chat_pb2.ChatInput(messages=[first, user]))

    one = await engine.prepare(of(chat_pb2.ROLE_DEVELOPER, "You are ", "a pirate."))
    other = await engine.prepare(of(chat_pb2.ROLE_SYSTEM, "You are a pirate."))
    third = await engine.prepare(of(chat_pb2.ROLE_SYSTEM, "You are a pirate. Sing and dance."))
    assert one.prompt_tokens == other.prompt_tokens < third.prompt_tokens


async def test_max_tokens_ends_with_length(engine: TextEngine) -> None:
    result = await run(engine, text("Once upon a time"), max_tokens=5)
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH
    assert result.usage is not None
    assert result.usage.completion_tokens == 5


async def test_no_part_of_a_stop_string_leaks(engine: TextEngine) -> None:
    whole = (await run(engine, text("Count: one two three"), max_tokens=40)).texts[0]
    # Begins and ends inside words, so that it begins inside a token and spans several.
    stop = whole[9:17]
    before = whole[: whole.index(stop)]
    options = {"logprobs": 0}
    result = await run(
        engine,
        text("Count: one two three", stopping={"strings": ["zzz", stop]}, output=options),
        max_tokens=40,
    )
    assert result.texts[0] == before
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP
    assert result.finishes[0].stop_string == stop
    assert joined(result.logprobs[0]) == before.encode()


async def test_a_stop_string_may_be_kept(engine: TextEngine) -> None:
    whole = (await run(engine, text("Count: one two three"), max_tokens=40)).texts[0]
    stop = whole[9:17]
    stopping = {"strings": [stop], "include_stop_string": True}
    result = await run(
        engine, text("Count: one two three", stopping=stopping, output={"logprobs": 0}), 40
    )
    assert result.texts[0] == whole[: whole.index(stop)] + stop
    assert joined(result.logprobs[0]) == result.texts[0].encode()


async def test_a_stop_token_is_named(engine: TextEngine) -> None:
    whole = await run(engine, text("Count: one two", output={"token_ids": True}), 20)
    stop = whole.token_ids[0][4]
    result = await run(engine, text("Count: one two", stopping={"token_ids": [stop]}), 20)
    assert result.finishes[0].stop_token_id == stop
    assert whole.texts[0].startswith(result.texts[0])
    assert len(result.texts[0]) < len(whole.texts[0])


async def test_choices_differ_and_a_seed_repeats_them(engine: TextEngine) -> None:
    def request(seed: int) -> GenerateRequest:
        return chat(
            "Invent a name for a ship.",
            output={"n": 2},
            sampling={"temperature": 1.2, "seed": seed},
        )

    first = await run(engine, request(7), 24)
    again = await run(engine, request(7), 24)
    other = await run(engine, request(8), 24)
    assert first.texts.keys() == first.finishes.keys() == {0, 1}
    assert first.texts[0] != first.texts[1]
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert first.usage is not None
    assert first.usage.completion_tokens > 24


async def test_greedy_choices_are_the_same(engine: TextEngine) -> None:
    for sampling in ({"temperature": 0.0}, {"top_p": 0.0}):
        request = chat("What is the capital of France?", output={"n": 3}, sampling=sampling)
        result = await run(engine, request)
        assert set(result.texts) == set(result.finishes) == {0, 1, 2}
        assert len(set(result.texts.values())) == 1
        assert "Paris" in result.texts[0]


async def test_logprobs_join_to_the_text(engine: TextEngine) -> None:
    request = chat("Write three emoji: 🌍🚀", output={"logprobs": 3, "token_ids": True})
    result = await run(engine, request, 40)
    tokens = result.logprobs[0]
    assert tokens
    # max_tokens may end within a character, of which the text then has nothing.
    assert joined(tokens).decode(errors="ignore") == result.texts[0]
    for item in tokens:
        values = [entry.logprob for entry in item.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert item.token.logprob == pytest.approx(values[0])
        assert item.token.id == item.top[0].id
    assert [item.token.id for item in tokens] == result.token_ids[0][: len(tokens)]


async def test_characters_of_several_tokens_stay_whole(engine: TextEngine) -> None:
    wanted = "🦩 größer, 東京 🇫🇷!"
    request = text("Copy:", constraint={"choices": {"values": [wanted]}}, output={"logprobs": 0})
    result = await run(engine, request)
    assert result.texts[0] == wanted
    assert all("\ufffd" not in piece for piece in result.pieces)
    assert joined(result.logprobs[0]) == wanted.encode()
    assert any("\ufffd" in item.token.text for item in result.logprobs[0])


async def test_banned_tokens_have_a_finite_logprob(engine: TextEngine) -> None:
    request = text(
        "Yes or no?", constraint={"choices": {"values": ["yes"]}}, output={"logprobs": 5}
    )
    result = await run(engine, request)
    values = [entry.logprob for item in result.logprobs[0] for entry in (item.token, *item.top)]
    assert values
    assert all(-9999.0 <= value <= 0.0 for value in values)


async def test_echo_begins_with_the_prompt(engine: TextEngine) -> None:
    prompt = "The capital of France is"
    result = await run(engine, text(prompt, output={"echo": True, "n": 2}), 4)
    bare = await run(engine, text(prompt), 4)
    assert result.texts[0] == result.texts[1] == prompt + bare.texts[0]


async def test_echo_without_tokens_scores_the_prompt(engine: TextEngine) -> None:
    prompt = "The capital of France is Paris"
    options = {"echo": True, "prompt_logprobs": 2}
    result = await run(engine, text(prompt, output=options), 0)
    assert result.texts[0] == prompt
    assert joined(result.prompt) == prompt.encode()
    assert not result.prompt[0].token.HasField("logprob")
    assert all(item.token.HasField("logprob") for item in result.prompt[1:])
    assert all(len(item.top) == 2 for item in result.prompt[1:])
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH
    assert result.usage is not None
    assert result.usage.completion_tokens == 0


async def test_no_tokens_at_all(engine: TextEngine) -> None:
    result = await run(engine, text("Only this", output={"echo": True}), 0)
    assert result.texts[0] == "Only this"
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


async def test_best_of_returns_the_likeliest(engine: TextEngine) -> None:
    def request(**output: int) -> GenerateRequest:
        sampling = {"temperature": 1.5, "seed": 3}
        return text("My favourite animal is", output=output, sampling=sampling)

    def mean(tokens: list[TokenLogprob]) -> float:
        return sum(item.token.logprob for item in tokens) / len(tokens)

    every = await run(engine, request(n=4, logprobs=0), 8)
    best = await run(engine, request(n=1, best_of=4), 8)
    likeliest = max(every.logprobs, key=lambda index: mean(every.logprobs[index]))
    assert set(best.texts) == set(best.finishes) == {0}
    assert best.texts[0] == every.texts[likeliest]
    assert not best.logprobs[0], "not asked for"
    assert best.usage is not None
    assert best.usage.completion_tokens == 32


async def test_tokens_equal_their_text(engine: TextEngine) -> None:
    scored = await run(engine, text("Tom has two cats", output={"prompt_logprobs": 0}), 8)
    ids = [item.token.id for item in scored.prompt]
    result = await run(
        engine, GenerateRequest(token_ids={"ids": ids}, sampling={"temperature": 0}), 8
    )
    assert result.texts == scored.texts
    echoed = GenerateRequest(token_ids={"ids": ids}, output={"echo": True})
    assert (await run(engine, echoed, 0)).texts[0] == "Tom has two cats"


async def test_logit_bias_forces_a_token(engine: TextEngine) -> None:
    wanted = (await run(engine, text(" blue", output={"prompt_logprobs": 0}), 1)).prompt[0].token
    sampling = {"temperature": 0, "logit_bias": {wanted.id: 100.0}}
    result = await run(engine, text("The sky is", sampling=sampling), 3)
    assert result.texts[0].encode() == wanted.data * 3


async def test_min_tokens_and_ignored_end(engine: TextEngine) -> None:
    ending = {"min_tokens": 30, "ignore_eos": True}
    result = await run(engine, chat("Say hi.", stopping=ending), 30)
    assert result.usage is not None
    assert result.usage.completion_tokens == 30


async def test_a_schema_is_obeyed(engine: TextEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    constraint = {"json_schema": json.dumps(schema)}
    request = chat("Describe Tom as JSON.", constraint=constraint, sampling={"temperature": 1.5})
    result = await run(engine, request, 128)
    answer = json.loads(result.texts[0])
    assert list(answer) == ["name", "age"]
    assert isinstance(answer["age"], int)
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_STOP


async def test_patterns_and_objects(engine: TextEngine) -> None:
    pattern = await run(engine, text("A year:", constraint={"regex": "(19|20)[0-9]{2}"}))
    assert pattern.texts[0].isdigit()
    assert len(pattern.texts[0]) == 4
    grammar = await run(engine, text("Say:", constraint={"grammar": 'root ::= "a" "b"+ "c"'}), 8)
    assert grammar.texts[0].startswith("ab")
    some = await run(engine, chat("One JSON object.", constraint={"json_object": True}), 200)
    if some.finishes[0].reason == generate_pb2.FINISH_REASON_STOP:
        assert isinstance(json.loads(some.texts[0]), dict)
    assert some.texts[0].startswith("{")


@pytest.mark.parametrize(
    "constraint",
    [
        {"json_schema": "{"},
        {"json_schema": '{"type": "nonsense"}'},
        {"json_schema": "[" * 5000},
        {"regex": "("},
        {"grammar": "root ::= unknown"},
    ],
    ids=["not-json", "no-type", "deep", "regex", "grammar"],
)
async def test_a_bad_rule_is_refused_and_harms_nobody(
    engine: TextEngine, constraint: dict[str, Any]
) -> None:
    with pytest.raises(InferenceError) as refusal:
        await run(engine, chat("Hi", constraint=constraint), 8)
    assert refusal.value.reason == "invalid_value"
    wanted = "response_format" if "json_schema" in constraint else "structured_outputs"
    assert refusal.value.param == wanted
    assert engine.health().alive
    assert "Paris" in (await run(engine, chat("What is the capital of France?"))).texts[0]


async def test_a_named_tool_is_called(engine: TextEngine) -> None:
    tools = [
        {"name": "get_weather", "description": "Weather", "parameters_json": _WEATHER},
        {"name": "get_time"},
    ]
    choice = {"mode": chat_pb2.ToolChoice.MODE_FUNCTION, "function_name": "get_weather"}
    request = chat("What is the weather in Paris?", tools=tools, tool_choice=choice)
    result = await run(engine, request, 128)
    assert result.names == {(0, 0): "get_weather"}
    assert result.ids[0, 0]
    assert json.loads(result.arguments[0, 0]).keys() == {"city"}
    assert result.texts.get(0, "") == ""
    assert result.finishes[0].reason == generate_pb2.FINISH_REASON_TOOL_CALLS
    cut = await run(engine, request, 12)
    assert cut.finishes[0].reason == generate_pb2.FINISH_REASON_LENGTH


async def test_some_tool_is_required(engine: TextEngine) -> None:
    tools = [{"name": "get_weather", "parameters_json": _WEATHER}, {"name": "get_time"}]
    required = chat_pb2.ToolChoice.MODE_REQUIRED
    choice = {"mode": required, "allowed_functions": ["get_weather"]}
    request = chat("How is Rome?", tools=tools, tool_choice=choice, output={"n": 2})
    request.chat.parallel_tool_calls = False
    result = await run(engine, request, 128)
    assert result.names == {(0, 0): "get_weather", (1, 0): "get_weather"}
    assert len(set(result.ids.values())) == 2
    assert all(json.loads(arguments).keys() == {"city"} for arguments in result.arguments.values())
    assert {finish.reason for finish in result.finishes.values()} == {
        generate_pb2.FINISH_REASON_TOOL_CALLS
    }


async def test_tools_may_go_unused(engine: TextEngine) -> None:
    tools = [{"name": "get_weather", "parameters_json": _WEATHER}]
    choice = {"mode": chat_pb2.ToolChoice.MODE_NONE}
    result = await run(
        engine, chat("What is the capital of France?", tools=tools, tool_choice=choice)
    )
    assert "Paris" in result.texts[0]
    assert not result.names
    assert result.plain > 1, "nothing is parsed where nothing may be called"


async def test_a_finished_tool_turn_is_understood(engine: TextEngine) -> None:
    request = chat("What is the weather in Paris?")
    request.chat.messages.add(role=chat_pb2.ROLE_ASSISTANT).tool_calls.add(
        id="call_1", name="get_weather", arguments='{"city": "Paris"}'
    )
    request.chat.messages.add(
        role=chat_pb2.ROLE_TOOL, tool_call_id="call_1", parts=[{"text": "Sunny, 21 degrees"}]
    )
    assert (await run(engine, request, 16)).texts[0]


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
        ({"text": ""}, "prompt"),
        ({"token_ids": {"ids": [49152]}}, "prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_cannot_be_is_refused_by_name(
    engine: TextEngine, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(InferenceError) as refusal:
        await engine.prepare(GenerateRequest(**({"text": "Hello"} | change)))
    assert refusal.value.param == param
    assert engine.health().alive


async def test_media_is_refused_by_a_text_model(engine: TextEngine) -> None:
    request = chat("Look:")
    request.chat.messages[0].parts.add(image={"data": b"\x89PNG", "mime_type": "image/png"})
    with pytest.raises(InferenceError) as refusal:
        await engine.prepare(request)
    assert (refusal.value.reason, refusal.value.param) == ("unsupported_value", "messages")


async def test_a_template_may_not_be_smuggled_in(engine: TextEngine) -> None:
    request = chat("Hello")
    request.chat.template_arguments_json = '{"chat_template": "{{ 1 }}"}'
    with pytest.raises(InferenceError) as refusal:
        await engine.prepare(request)
    assert refusal.value.reason == "unsupported_parameter"


async def test_long_prompts_are_counted_and_absurd_ones_refused(engine: TextEngine) -> None:
    long = await engine.prepare(chat("word " * 3000))
    assert long.prompt_tokens > 3000
    with pytest.raises(InferenceError) as refusal:
        await engine.prepare(chat("word " * 1_000_000))
    assert refusal.value.reason == "context_length_exceeded"
    assert refusal.value.param == "messages"


async def test_a_repeated_prompt_is_found_in_the_cache(engine: TextEngine) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 30
    salted = {"cache_salt": "one"}
    first = await run(engine, text(prompt, **salted), 2)
    second = await run(engine, text(prompt, **salted), 2)
    other = await run(engine, text(prompt, cache_salt="two"), 2)
    cached = [result.usage.cached_tokens for result in (first, second, other) if result.usage]
    assert cached[0] == cached[2] == 0
    assert cached[1] > 0


async def test_leaving_stops_the_engine(engine: TextEngine) -> None:
    endless = text("Once upon a time", stopping={"ignore_eos": True})
    prepared = await engine.prepare(endless)
    async with aclosing(engine.generate(prepared, 1500, 0)) as events:
        async for _ in events:
            assert engine.health().running == 1
            break
    async with asyncio.timeout(10):
        while engine.health().running:
            await asyncio.sleep(0)
    before = engine.health().generated_tokens
    # The engine core really has stopped: a request that would queue behind it is quick.
    result = await run(engine, text("Hi"), 2)
    assert result.usage is not None
    assert engine.health().generated_tokens == before + result.usage.completion_tokens
    assert engine.health().last_step_age_seconds == 0.0


async def test_cancelling_stops_the_engine(engine: TextEngine) -> None:
    prepared = await engine.prepare(text("Once upon a time", stopping={"ignore_eos": True}))
    first = asyncio.Event()

    async def consume() -> None:
        async with aclosing(engine.generate(prepared, 1500, 0)) as events:
            async for _ in events:
                first.set()

    task = asyncio.create_task(consume())
    async with asyncio.timeout(60):
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while engine.health().running:
            await asyncio.sleep(0)


async def test_many_at_once(engine: TextEngine) -> None:
    requests = [chat(f"Write about the number {number}.") for number in range(8)]
    results = await asyncio.gather(*(run(engine, request, 24) for request in requests))
    assert all(len(result.finishes) == 1 and result.texts[0] for result in results)
    assert engine.health().running == 0


async def test_reading_a_long_prompt_is_progress(engine: TextEngine) -> None:
    prepared = await engine.prepare(text("word " * 1800))
    ages = []
    started = asyncio.get_running_loop().time()
    async with aclosing(engine.generate(prepared, 1, 0)) as events:
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            await asyncio.sleep(0.005)
            ages.append(engine.health().last_step_age_seconds)
        took = asyncio.get_running_loop().time() - started
        await first
    assert max(ages) < took / 2, "no output for the whole time, and yet no stall"


@asynccontextmanager
async def behind_an_edge(engine: TextEngine) -> AsyncIterator[ClientSession]:
    """The engine behind a real server and a real edge."""
    config = ModelConfig(id="smollm2", engine="scripted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.server.create_engine", lambda _: engine)
        server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(config,)))
    server.registry.models[0].started = True
    await server.start()
    edge_config = EdgeConfig(port=0, upstreams=(f"127.0.0.1:{server.port}",), settle_seconds=0.0)
    async with serving(edge_config) as (edge, port):
        await eventually(edge.router.ready)
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            yield http
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "close", lambda: asyncio.sleep(0))  # other tests go on with it
        await server.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_the_edge_stops_vllm(engine: TextEngine, stream: bool) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "stream": stream,
        "ignore_eos": True,
    }
    async with behind_an_edge(engine) as http:
        before = engine.health().generated_tokens
        request = asyncio.create_task(read_all(http, body))
        await eventually(lambda: engine.health().generated_tokens > before + 5, 60)
        request.cancel()
        await eventually(lambda: engine.health().running == 0)
        made = engine.health().generated_tokens
        async with http.post("/v1/chat/completions", json=body | {"max_tokens": 3}) as response:
            await response.read()
            assert response.status == 200
        assert engine.health().generated_tokens == made + 3, "nothing was made for nobody"
        assert made - before < 1000


async def read_all(http: ClientSession, body: dict[str, Any]) -> bytes:
    async with http.post("/v1/chat/completions", json=body) as response:
        return await response.read()


async def test_a_dead_core_is_noticed(engine: TextEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Stands last: the engine does not survive it."""
    prepared = await engine.prepare(text("Once upon a time", stopping={"ignore_eos": True}))
    family = psutil.Process().children(recursive=True)
    (core,) = [process for process in family if process.name().startswith("VLLM::EngineCor")]
    with pytest.raises(EngineDeadError):
        async with asyncio.timeout(60), aclosing(engine.generate(prepared, 1500, 0)) as events:
            async for _ in events:
                core.kill()
    assert not engine.health().alive
    with pytest.raises(EngineDeadError):
        await run(engine, text("Hello"), 1)
    caplog.clear()  # vLLM's error report refers to the whole engine.
