"""Every field that a gRPC caller may set has an effect: without it the call differs.

A real server with the real vLLM engine is called over gRPC. Only AsyncLLM, which would need
weights, is replaced by a stub that records its arguments. The tests compare those arguments and
the response. A field without a row fails.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
import tokenizers
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from contract.parameters import PARAMETERS
from inference.config import AliasConfig, ModelConfig
from inference.engines.scripted_embedding import ScriptedEmbeddingEngine
from inference.errors import InferenceError
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from tests.conftest import running_server
from tests.unit.openai.parameters import GENERATION

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.logprobs import Logprob
    from vllm.renderers import renderer_from_config
    from vllm.v1.engine.async_llm import AsyncLLM

    from inference.engines.vllm_chat import chat_request
    from inference.engines.vllm_tokens import TokenCounter

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One token for each character, and the end token.
WORDS = ["<end>", *(chr(code) for code in range(32, 127))]
TEMPLATE = (
    "{{ messages | tojson }}{{ tools | tojson if tools else '' }}{{ add_generation_prompt }}"
    "{{ reasoning_effort }}{{ extra }}"
    # vLLM continues the final message only if the rendered text ends with its content.
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)
CALLS = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' * 2
SCHEMA = '{"type": "object"}'


class CoreOfNoWeights:
    """The engine core's methods that vllm_plugin adds."""

    async def call_utility_async(self, _method: str, *_arguments: Any) -> float:
        return time.thread_time()


class EngineOfNoWeights:
    """The part of AsyncLLM that VllmEngine uses, with vLLM's own configuration and renderer."""

    def __init__(self, arguments: Any) -> None:
        self.vllm_config = arguments.create_engine_config()
        self.model_config = self.vllm_config.model_config
        self.scheduler_config = self.vllm_config.scheduler_config
        self.renderer = renderer_from_config(self.vllm_config)
        self.engine_core = CoreOfNoWeights()
        self.errored = False
        self.output_handler: asyncio.Task[Any] | None = None
        self.says = "one"
        self.fault: Exception | None = None
        self.asked = ""

    def get_tokenizer(self) -> Any:
        return self.renderer.get_tokenizer()

    def get_num_unfinished_requests(self) -> int:
        return 0

    def shutdown(self, _timeout: float) -> None:
        assert self.output_handler is not None
        assert self.output_handler.done(), "it would report the processes' end as a failure"
        self.renderer.shutdown()

    async def generate(
        self, engine_input: Any, params: Any, _id: str, **more: Any
    ) -> AsyncIterator[Any]:
        if self.fault is not None:
            raise self.fault
        # The arrival time differs from call to call.
        shown = {key: value for key, value in engine_input.items() if key != "arrival_time"}
        self.asked = repr((shown, msgspec.structs.asdict(params), more))
        found = {1: Logprob(-1.0, rank=1), 2: Logprob(-2.0, rank=2)}
        tokens = [1] * len(self.says)
        prompt = engine_input["prompt_token_ids"]
        outputs = [
            SimpleNamespace(
                index=index,
                text=f"{self.says}{index or ''}",
                token_ids=tokens,
                logprobs=None if params.logprobs is None else [found] * len(tokens),
                cumulative_logprob=-1.0 * (params.n - index),
                finish_reason="stop",
                stop_reason=None,
            )
            for index in range(params.n)
        ]
        scores = [None, *({token: Logprob(-1.0, rank=1)} for token in prompt[1:])]
        yield SimpleNamespace(
            outputs=outputs,
            finished=True,
            num_cached_tokens=0,
            prompt_token_ids=prompt,
            prompt_logprobs=None if params.prompt_logprobs is None else scores,
        )


@dataclass(frozen=True)
class Outcome:
    """The response to a call, the arguments that reached the engine, and the refusal's message."""

    said: list[Any]
    asked: str = ""
    refusal: str | None = None


@dataclass(frozen=True)
class Service:
    """A running server."""

    stub: InferenceServiceStub
    llm: EngineOfNoWeights

    async def outcome(self, request: Message) -> Outcome:
        """Calls the service."""
        self.llm.asked = ""
        try:
            if isinstance(request, EmbedRequest):
                return Outcome([_plain(await self.stub.Embed(request))])
            if isinstance(request, TokenizeRequest):
                return Outcome([_plain(await self.stub.Tokenize(request))])
            said = [_plain(part) async for part in self.stub.Generate(request)]
        except grpc.aio.AioRpcError as error:
            return Outcome([], refusal=error.details() or "")
        return Outcome(said, self.llm.asked)


def _plain(message: Message) -> dict[str, Any]:
    """The message as a dict, without values that differ from call to call."""
    plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
    plain.pop("timings", None)
    for name in ("call_id", "created"):
        plain.get("admitted", {}).pop(name, None)
    for delta in plain.get("deltas", ()):
        for call in delta.get("tool_calls", ()):
            call.pop("id", None)
    return plain


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights."""
    directory = tmp_path_factory.mktemp("model")
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    pattern = tokenizers.Regex(r"[\s\S]")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<end>",
            "chat_template": TEMPLATE,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 4096,
            "dtype": "float32",
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(model_directory: Path) -> AsyncIterator[Service]:
    engines: list[EngineOfNoWeights] = []

    def create(arguments: Any, **_: Any) -> EngineOfNoWeights:
        engines.append(EngineOfNoWeights(arguments))
        return engines[0]

    text = ModelConfig(
        id="m",
        engine="vllm",
        source=str(model_directory),
        tool_parser="hermes",
        allow_patterns=True,
    )
    embedding = ModelConfig(
        id="e",
        engine="scripted-embedding",
        aliases=(AliasConfig(name="short", context_length=2),),
        engine_args={"shortenable": True},
    )
    # A second embedding model: an only one would need no name in requests.
    another = ModelConfig(id="e2", engine="scripted-embedding")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(AsyncLLM, "from_engine_args", create)
        async with (
            running_server(text, embedding, another) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            engines[0].output_handler = asyncio.create_task(asyncio.Event().wait())
            yield Service(InferenceServiceStub(channel), engines[0])


TEXT: dict[str, Any] = {"model": "m", "text": "Say json"}
USER = {"role": "ROLE_USER", "parts": [{"text": "Say json"}]}
TOOLS = [{"name": "f"}, {"name": "g"}]
CALL = {"id": "c", "name": "f", "arguments": '{"a": 1}'}
ASKED = {"role": "ROLE_ASSISTANT", "tool_calls": [CALL]}
RESULT = {"role": "ROLE_TOOL", "tool_call_id": "c", "parts": [{"text": "r"}]}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "chat": {"messages": [*messages] or [USER], **fields}}


def choosing(**choice: Any) -> dict[str, Any]:
    return chat(tools=TOOLS, tool_choice=choice)


def turn(**fields: Any) -> dict[str, Any]:
    return chat(USER | fields)


# Field -> a request in which it has an effect.
GENERATE: dict[str, dict[str, Any]] = {
    "model": TEXT,
    "text": TEXT,
    "token_ids.ids": {"model": "m", "token_ids": {"ids": [5, 6]}},
    "suffix": TEXT | {"suffix": "x"},
    "chat.messages.role": turn(role="ROLE_SYSTEM"),
    "chat.messages.parts.text": chat(USER),
    "chat.messages.parts.refusal": turn(role="ROLE_ASSISTANT", parts=[{"refusal": "no"}]),
    "chat.messages.name": turn(name="ann"),
    "chat.messages.reasoning": turn(role="ROLE_ASSISTANT", reasoning="why"),
    "chat.messages.tool_call_id": chat(ASKED, RESULT),
    "chat.messages.tool_calls.id": chat(ASKED, RESULT),
    "chat.messages.tool_calls.name": chat(ASKED, RESULT),
    "chat.messages.tool_calls.arguments": chat(ASKED, RESULT),
    "chat.tools.name": chat(tools=TOOLS),
    "chat.tools.description": chat(tools=[{"name": "f", "description": "d"}]),
    "chat.tools.parameters_json": chat(
        tools=[{"name": "f", "parameters_json": '{"type": "object", "title": "t"}'}]
    ),
    "chat.tools.strict": chat(tools=[{"name": "f", "strict": True}]),
    "chat.tool_choice.mode": choosing(mode="MODE_NONE"),
    "chat.tool_choice.function_name": choosing(mode="MODE_FUNCTION", function_name="g"),
    "chat.tool_choice.allowed_functions": choosing(mode="MODE_AUTO", allowed_functions=["g"]),
    "chat.parallel_tool_calls": chat(tools=TOOLS, parallel_tool_calls=False),
    "chat.reasoning_effort": chat(reasoning_effort="low"),
    "chat.template_arguments_json": chat(template_arguments_json='{"extra": "x"}'),
    "chat.add_generation_prompt": chat(add_generation_prompt=False),
    "chat.continue_final_message": chat(continue_final_message=True),
    "sampling.logit_bias": TEXT | {"sampling": {"logit_bias": {"5": 1.5}}},
    "stopping.max_tokens": TEXT | {"stopping": {"max_tokens": 5}},
    "stopping.cut_to_context": TEXT
    | {"stopping": {"max_tokens": 1_000_000, "cut_to_context": True}},
    "stopping.strings": TEXT | {"stopping": {"strings": ["x"]}},
    "output.n": TEXT | {"output": {"n": 2}},
    "output.best_of": TEXT | {"output": {"best_of": 2}},
    "output.logprobs": TEXT | {"output": {"logprobs": 1}},
    "output.prompt_logprobs": TEXT | {"output": {"prompt_logprobs": 1}},
    "output.echo": TEXT | {"output": {"echo": True}},
    "output.token_ids": TEXT | {"output": {"token_ids": True}},
    "output.prompt_token_ids": TEXT | {"output": {"prompt_token_ids": True}},
    "truncate_prompt_tokens": TEXT | {"truncate_prompt_tokens": 2},
    "truncation_side": TEXT
    | {"truncate_prompt_tokens": 2, "truncation_side": "TRUNCATION_SIDE_RIGHT"},
    "constraint.json_schema": TEXT | {"constraint": {"json_schema": SCHEMA}},
    "constraint.json_object": TEXT | {"constraint": {"json_object": True}},
    "constraint.choices.values": TEXT | {"constraint": {"choices": {"values": ["a"]}}},
    "constraint.regex": TEXT | {"constraint": {"regex": "a+"}},
    "constraint.grammar": TEXT | {"constraint": {"grammar": 'root ::= "a"'}},
}
# Fields of the parameter table take their values from the rows of the REST tests.
TABLED = {".".join(parameter.path) for parameter in PARAMETERS}
for row in GENERATION:
    for path, value in row.sets.items():
        if path in TABLED:
            *groups, name = path.split(".")
            GENERATE[path] = TEXT | ({groups[0]: {name: value}} if groups else {name: value})

EMBED: dict[str, dict[str, Any]] = {
    "model": {"model": "e", "inputs": [{"text": "x"}]},
    "inputs.text": {"model": "e", "inputs": [{"text": "x"}]},
    "inputs.token_ids.ids": {"model": "e", "inputs": [{"token_ids": {"ids": [1]}}]},
    "dimensions": {"model": "e", "inputs": [{"text": "x"}], "dimensions": 2},
    "truncate": {"model": "short", "inputs": [{"text": "a b c"}], "truncate": True},
    "truncate_prompt_tokens": {
        "model": "e",
        "inputs": [{"text": "a b c"}],
        "truncate_prompt_tokens": 2,
    },
}
# A prompt has nothing of it.
NOT_IN_PROMPTS = {"chat.parallel_tool_calls"}
TOKENIZE: dict[str, dict[str, Any]] = {
    **{
        path: fields
        for path, fields in GENERATE.items()
        if path.startswith("chat.") and path not in NOT_IN_PROMPTS
    },
    "model": TEXT,
    "text": TEXT,
    "token_ids.ids": {"model": "m", "token_ids": {"ids": [5, 6]}},
    "add_special_tokens": {"model": "m", "text": "", "add_special_tokens": False},
    "token_names": TEXT | {"token_names": True},
    "count_only": TEXT | {"count_only": True},
}
# The engine's output for requests that do not accept any text.
SAYS = {
    "constraint.json_schema": "{}",
    "constraint.json_object": "{}",
    "constraint.choices.values": "a",
    "constraint.regex": "a",
    "constraint.grammar": "a",
    "chat.tool_choice.function_name": CALLS.replace('"f"', '"g"'),
}
# Refused, as this model does not support it.
REFUSED = {"suffix"}
# Fields of media, which need a multimodal model.
_MEDIA = {
    "image.data": {"image": {"data": "AAAA", "mime_type": "image/png"}},
    "image.mime_type": {"image": {"data": "AAAA", "mime_type": "image/png"}},
    "image.detail": {"image": {"data": "AAAA", "mime_type": "image/png", "detail": "low"}},
    "audio.data": {"audio": {"data": "AAAA", "mime_type": "audio/wav"}},
    "audio.mime_type": {"audio": {"data": "AAAA", "mime_type": "audio/wav"}},
}
MEDIA = {f"chat.messages.parts.{path}": part for path, part in _MEDIA.items()}
# A file is always refused.
FILES = {f"chat.messages.parts.file.{n}" for n in ("data", "mime_type", "detail", "filename")}
# No engine uses file names, or the detail of audio.
WITHOUT_MEANING = {
    "chat.messages.parts.image.filename",
    "chat.messages.parts.audio.filename",
    "chat.messages.parts.audio.detail",
}
# Tested elsewhere: by the log test below, in tests/contract/test_grpc.py, and with a reasoning
# parser in tests/engines/test_vllm_parsing.py.
ELSEWHERE = {"request_id", "output.single_message", "output.hide_reasoning"}
# The scripted engine has no tokens to cut; see tests/engines/test_embedding_engine.py.
EMBED_ELSEWHERE = {"request_id", "truncation_side"}


def leaves(descriptor: Descriptor, at: str = "") -> Iterator[str]:
    """Paths of all fields that hold no message; a map is one field."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            yield at + field.name
        else:
            yield from leaves(inner, f"{at}{field.name}.")


def without(request: Message, path: str) -> Message:
    """A copy of the request without a field; in a list, without that of the first entry."""
    request = copy.deepcopy(request)
    place: Any = request
    names = path.split(".")
    for name, inner in pairwise(names):
        place = getattr(place, name)
        if not isinstance(place, Message):
            place = next(entry for entry in place if inner in _set_fields(entry))
    place.ClearField(names[-1])
    return request


def _set_fields(message: Message) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


async def test_every_field_has_a_row() -> None:
    known = GENERATE.keys() | MEDIA.keys() | FILES | WITHOUT_MEANING | ELSEWHERE
    assert set(leaves(GenerateRequest.DESCRIPTOR)) == known
    assert set(leaves(EmbedRequest.DESCRIPTOR)) == EMBED.keys() | EMBED_ELSEWHERE
    of_chats = NOT_IN_PROMPTS | MEDIA.keys() | FILES | WITHOUT_MEANING
    assert set(leaves(TokenizeRequest.DESCRIPTOR)) == TOKENIZE.keys() | of_chats | {"request_id"}


@pytest.mark.parametrize(
    ("type_", "path", "fields"),
    [
        pytest.param(type_, path, fields, id=f"{type_.__name__}.{path}")
        for type_, rows in (
            (GenerateRequest, GENERATE),
            (EmbedRequest, EMBED),
            (TokenizeRequest, TOKENIZE),
        )
        for path, fields in rows.items()
    ],
)
async def test_removing_a_field_changes_the_call(
    service: Service, type_: type[Message], path: str, fields: dict[str, Any]
) -> None:
    service.llm.says = SAYS.get(path, CALLS if "tool" in path else "one")
    request = json_format.ParseDict(fields, type_())
    with_it = await service.outcome(request)
    assert (with_it.refusal is None) == (path not in REFUSED), with_it.refusal
    assert with_it == await service.outcome(request), "what is compared must not vary by itself"
    assert with_it != await service.outcome(without(request, path))


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (False, 1)])
async def test_second_tool_call_is_sent_only_with_parallel_tool_calls(
    service: Service, parallel: bool, calls: int
) -> None:
    service.llm.says = CALLS
    fields = chat(tools=TOOLS, parallel_tool_calls=parallel)
    outcome = await service.outcome(json_format.ParseDict(fields, GenerateRequest()))
    deltas = [delta for part in outcome.said for delta in part.get("deltas", ())]
    assert [
        call["name"] for delta in deltas for call in delta.get("tool_calls", ()) if "name" in call
    ] == ["f"] * calls


def rendered(part: dict[str, Any], path: str = "") -> Any:
    message = json_format.ParseDict(turn(parts=[part]), GenerateRequest())
    return messages(without(message, path) if path else message)


def messages(request: Message) -> Any:
    """The messages that vLLM gets from a chat with a multimodal model."""
    chat = chat_request(
        request.chat,
        structured_outputs=None,
        skip_special_tokens=True,
        cache_salt=None,
        takes_media=True,
        calls_tools=False,
    )
    return chat.messages


@pytest.mark.parametrize(("path", "part"), MEDIA.items(), ids=MEDIA)
async def test_media_fields_reach_a_multimodal_model(path: str, part: dict[str, Any]) -> None:
    assert rendered(part) != rendered(part, path)


async def test_media_and_text_are_translated_to_vllms_format() -> None:
    parts = [MEDIA["chat.messages.parts.image.detail"], _MEDIA["audio.data"], {"text": "x"}]
    message = json_format.ParseDict(turn(parts=parts), GenerateRequest())
    (said,) = messages(message)
    assert list(said["content"]) == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "x"},
    ]


async def test_files_are_refused() -> None:
    with pytest.raises(InferenceError) as refusal:
        rendered({"file": {"data": "AAAA"}})
    assert (refusal.value.reason, refusal.value.param) == ("unsupported_value", "messages")


async def test_request_id_is_in_the_log_of_a_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(service.llm, "fault", RuntimeError("broken"))
    monkeypatch.setattr(ScriptedEmbeddingEngine, "generate", break_)
    generate = json_format.ParseDict(TEXT | {"request_id": "mine-1"}, GenerateRequest())
    embed = json_format.ParseDict(EMBED["dimensions"] | {"request_id": "mine-2"}, EmbedRequest())
    monkeypatch.setattr(TokenCounter, "tokenize", break_)
    tokenize = json_format.ParseDict(TEXT | {"request_id": "mine-3"}, TokenizeRequest())
    for request in (generate, embed, tokenize):
        await service.outcome(request)
        assert request.request_id in caplog.text
