"""vllm.grpc.engine: how other gateways drive the model, over the shared engine."""

from __future__ import annotations

import asyncio
import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference.engines.base import TextEngine
from inference.service import Writer
from keys import create_key
from tests.conftest import eventually
from tests.engines.gateway_face import connected, face
from tests.engines.generating import prepare, run, text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from smg_grpc_proto import vllm_engine_pb2 as smg
    from smg_grpc_proto import vllm_engine_pb2_grpc as smg_grpc
    from smg_grpc_proto.generated import common_pb2

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

STREAMED = {True: "stream", False: "whole"}


def request(
    prompt: str | list[int] = "Once upon a time", *, stream: bool = True, **params: Any
) -> smg.GenerateRequest:
    params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    made = smg.GenerateRequest(
        request_id=params.pop("request_id", "r1"),
        stream=stream,
        sampling_params=smg.SamplingParams(**params),
    )
    if isinstance(prompt, str):
        made.text = prompt
    else:
        made.tokenized.input_ids.extend(prompt)
    return made


ENDLESS = {"max_tokens": 1900}


async def answers(call: Any) -> list[Any]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def status(call: Any) -> tuple[str, str]:
    """The status and the message of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await (answers(call) if hasattr(call, "read") else call)
    return failure.value.code().name, str(failure.value.details())


@pytest.mark.parametrize("stream", STREAMED, ids=STREAMED.get)
async def test_generate_has_the_tokens_of_the_own_service(engine: TextEngine, stream: bool) -> None:
    plain = text("Once upon a time", stopping={"ignore_eos": True}, output={"token_ids": True})
    expected = (await run(engine, plain, 8)).token_ids[0]
    prompt = (await prepare(engine, plain)).prompt_token_ids  # type: ignore[attr-defined]
    async with face(engine) as gateway:
        made_before = engine.health().generated_tokens
        messages = await answers(gateway.stub.Generate(request(prompt, stream=stream)))
        last = messages[-1].complete
        tokens = [token for m in messages for token in m.chunk.token_ids] or last.output_ids
        assert list(tokens) == expected
        assert len(messages) > 2 if stream else len(messages) == 1
        assert (last.finish_reason, last.prompt_tokens) == ("length", len(prompt))
        assert engine.health().generated_tokens == made_before + 8
        labels = (
            'gen_ai_operation_name="text_completion",gen_ai_provider_name="isthmus",'
            'gen_ai_request_model="smollm2",gen_ai_response_model="smollm2",gen_ai_token_type='
        )
        usage = f"gen_ai_client_token_usage_sum{{{labels}"
        assert gateway.counted(f'{usage}"input"}}') == len(prompt)
        assert gateway.counted(f'{usage}"output"}}') == 8
        assert gateway.counted('isthmus_queue_wait_seconds_count{model="smollm2"}') == 1


async def test_text_is_tokenized_and_choices_end_one_by_one(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        messages = await answers(gateway.stub.Generate(request(n=3, temperature=1.0, seed=1)))
        ends = [message.complete for message in messages if message.HasField("complete")]
        assert sorted(end.index for end in ends) == [0, 1, 2]
        assert {end.prompt_tokens for end in ends} == {4}
        counts = [0, 0, 0]
        for message in messages:
            counts[message.chunk.index] += len(message.chunk.token_ids)
        assert counts == [8, 8, 8]
        assert gateway.counted('isthmus_permits_used{model="smollm2"}') == 0


async def test_a_gateway_learns_the_model_its_load_and_its_tokenizer(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        stub = gateway.stub
        info = await stub.GetModelInfo(smg.GetModelInfoRequest())
        assert (info.is_generation, info.max_context_length) == (True, 2048)
        assert info.vocab_size == engine.model.text.vocabulary_size
        server = await stub.GetServerInfo(smg.GetServerInfoRequest())
        assert server.max_num_seqs == 32
        assert (await stub.HealthCheck(smg.HealthCheckRequest())).healthy
        health = health_pb2_grpc.HealthStub(gateway.channel)
        asked = health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine")
        assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
        running = stub.Generate(request(**ENDLESS))
        await running.read()
        load = (await stub.GetLoads(smg.GetLoadsRequest())).loads[0]
        assert (load.num_running_reqs, load.num_total_reqs) == (1, 1)
        running.cancel()
        chunks = await answers(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
        archive = zipfile.ZipFile(io.BytesIO(b"".join(chunk.data for chunk in chunks)))
        assert "tokenizer.json" in archive.namelist()
        assert chunks[-1].sha256


@pytest.mark.parametrize("key", ["", "isk_wrong"])
async def test_every_method_wants_a_key(engine: TextEngine, key: str, tmp_path: Path) -> None:
    right = create_key(tmp_path / "keys.json", "smg")[1]
    async with face(engine, tmp_path / "keys.json", key) as gateway:
        for name, message in {
            "Generate": request(),
            "Abort": smg.AbortRequest(),
            "HealthCheck": smg.HealthCheckRequest(),
            "GetModelInfo": smg.GetModelInfoRequest(),
            "GetTokenizer": common_pb2.GetTokenizerRequest(),
        }.items():
            assert (await status(getattr(gateway.stub, name)(message)))[0] == "UNAUTHENTICATED"
        assert engine.health().running == 0
    async with face(engine, tmp_path / "keys.json", right) as gateway:
        assert await answers(gateway.stub.Generate(request()))


async def test_a_full_model_refuses_until_the_caller_leaves(engine: TextEngine) -> None:
    async with face(engine, max_running=1, max_queued=0) as gateway:
        running = gateway.stub.Generate(request(**ENDLESS))
        await running.read()
        code, message = await status(gateway.stub.Generate(request()))
        assert code == "RESOURCE_EXHAUSTED"
        assert "overloaded" in message
        assert engine.health().running == 1
        running.cancel()
        await eventually(lambda: gateway.server.registry.models[0].admission.running == 0)
        await eventually(lambda: engine.health().running == 0)
        assert gateway.counted('isthmus_cancels_total{stage="output"}') == 1
        assert gateway.counted('isthmus_refusals_total{reason="server_overloaded"}') == 1
        assert await answers(gateway.stub.Generate(request()))


async def test_abort_ends_the_requests_of_its_own_key_only(
    engine: TextEngine, tmp_path: Path
) -> None:
    first, second = (create_key(tmp_path / "keys.json", name)[1] for name in ("a", "b"))
    async with face(engine, tmp_path / "keys.json", first) as gateway:
        running = gateway.stub.Generate(request(**ENDLESS))
        await running.read()
        abort = smg.AbortRequest(request_ids=["r1"])
        await gateway.stub.Abort(abort)
        messages = await answers(running)
        assert messages[-1].complete.finish_reason == "abort"
        await eventually(lambda: engine.health().running == 0)
        assert gateway.counted('isthmus_cancels_total{stage="output"}') == 1

        running = gateway.stub.Generate(request(max_tokens=200))
        await running.read()
        async with connected(gateway.server.gateway_port, second) as other:
            await smg_grpc.VllmEngineStub(other).Abort(abort)
        assert (await answers(running))[-1].complete.finish_reason == "length"


async def test_a_second_abort_leaves_the_end_of_the_response_alone(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with face(engine) as gateway:
        running = gateway.stub.Generate(request(**ENDLESS))
        await running.read()
        write, writing, gate = Writer.write, asyncio.Event(), asyncio.Event()

        async def slow_write(self: Writer, message: Any, holding: Any) -> None:
            if isinstance(message, smg.GenerateResponse) and message.HasField("complete"):
                writing.set()
                await gate.wait()
            await write(self, message, holding)

        monkeypatch.setattr(Writer, "write", slow_write)
        abort = smg.AbortRequest(request_ids=["r1"])
        await gateway.stub.Abort(abort)
        await writing.wait()
        await gateway.stub.Abort(abort)
        gate.set()
        messages = await asyncio.wait_for(answers(running), 10)
        assert messages[-1].complete.finish_reason == "abort"


async def test_abort_ends_a_request_that_waits_for_a_permit(engine: TextEngine) -> None:
    async with face(engine, max_running=1) as gateway:
        admission = gateway.server.registry.models[0].admission
        running = gateway.stub.Generate(request(**ENDLESS))
        await running.read()
        waiting = asyncio.create_task(answers(gateway.stub.Generate(request(request_id="r2"))))
        await eventually(lambda: admission.queued == 1)
        await gateway.stub.Abort(smg.AbortRequest(request_ids=["r2"]))
        assert [message.complete.finish_reason for message in await waiting] == ["abort"]
        assert (admission.queued, admission.running) == (0, 1)
        assert gateway.counted('isthmus_cancels_total{stage="waiting"}') == 1
        running.cancel()
        await eventually(lambda: admission.running == 0)


async def test_a_schema_is_rewritten_as_for_the_own_service(engine: TextEngine) -> None:
    schema = '{"enum": ["no", "yes"], "not": {"const": "no"}}'
    own = await run(engine, text("Well:", constraint={"json_schema": schema}))
    assert own.texts[0] == '"yes"'
    asked = request("Well:", json_schema=schema, ignore_eos=False, stream=False)
    async with face(engine) as gateway:
        answer = (await answers(gateway.stub.Generate(asked)))[-1].complete
    tokenizer = engine.async_llm.get_tokenizer()  # type: ignore[attr-defined]
    assert tokenizer.decode(answer.output_ids, skip_special_tokens=True) == '"yes"'


@pytest.mark.parametrize(
    ("asked", "code", "part"),
    [
        (request([1] * 2048), "INVALID_ARGUMENT", "context length"),
        (request([2**20]), "INVALID_ARGUMENT", "vocabulary"),
        (smg.GenerateRequest(), "INVALID_ARGUMENT", "required"),
        (request(n=99), "INVALID_ARGUMENT", "'n'"),
        (request(logprobs=-1), "INVALID_ARGUMENT", "'logprobs'"),
        (request(prompt_logprobs=99), "INVALID_ARGUMENT", "'prompt_logprobs'"),
        (request(regex="a+"), "INVALID_ARGUMENT", "structured_outputs.regex"),
        (request(structural_tag="{}"), "INVALID_ARGUMENT", "structural_tag"),
        (request(json_schema='{"type": 5}'), "INVALID_ARGUMENT", "schema"),
        (request(json_schema="{}"), "INVALID_ARGUMENT", "'ignore_eos'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
async def test_a_request_beyond_the_limits_is_refused(
    engine: TextEngine, asked: smg.GenerateRequest, code: str, part: str
) -> None:
    async with face(engine, max_choices=4) as gateway:
        found = await status(gateway.stub.Generate(asked))
        assert found[0] == code
        assert part in found[1]
        assert gateway.server.registry.models[0].admission.running == 0
        metrics = gateway.server.metrics().decode()
        assert re.search(r'^isthmus_refusals_total\{reason="\w+"\} 1', metrics, re.MULTILINE)


async def test_a_value_that_vllm_refuses_is_the_callers_error(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        found = await status(gateway.stub.Generate(request(temperature=-1.0)))
        assert found == (
            "INVALID_ARGUMENT",
            "Invalid value for 'temperature': this model cannot be run with it.",
        )


async def test_media_and_transfers_of_the_cache_are_refused(engine: TextEngine) -> None:
    media = request([1, 2])
    media.media_refs.items.add(url="http://169.254.169.254/")
    transfer = request([1, 2])
    transfer.kv_transfer_params.remote_host = "example.com"
    async with face(engine) as gateway:
        for asked, name in ((media, "media_refs"), (transfer, "kv_transfer_params")):
            code, message = await status(gateway.stub.Generate(asked))
            assert (code, f"'{name}'" in message) == ("INVALID_ARGUMENT", True)


async def test_methods_that_reach_other_callers_are_not_served(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        stub = gateway.stub
        for method, message in (
            (stub.Embed, smg.EmbedRequest()),
            (stub.FlushCache, common_pb2.FlushCacheRequest()),
            (stub.StartProfile, common_pb2.StartProfileRequest()),
            (stub.StopProfile, common_pb2.StopProfileRequest()),
            (stub.SubscribeKvEvents, common_pb2.SubscribeKvEventsRequest()),
        ):
            assert (await status(method(message)))[0] == "UNIMPLEMENTED"


async def test_bytes_that_are_no_message_are_refused(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        call = gateway.channel.unary_stream("/vllm.grpc.engine.VllmEngine/Generate")
        assert (await status(call(b"\xff\xff")))[0] == "INVALID_ARGUMENT"


async def test_a_key_pays_for_its_tokens(engine: TextEngine, tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "smg", tokens_per_minute=10)[1]
    async with face(engine, tmp_path / "keys.json", key) as gateway:
        assert await answers(gateway.stub.Generate(request(max_tokens=6)))
        assert (await status(gateway.stub.Generate(request())))[0] == "RESOURCE_EXHAUSTED"


async def test_a_drain_lets_running_calls_finish(engine: TextEngine) -> None:
    async with face(engine) as gateway:
        running = gateway.stub.Generate(request(max_tokens=100))
        await running.read()
        stopping = asyncio.create_task(gateway.server.drain())
        await eventually(gateway.server.registry.draining.is_set)
        assert not (await gateway.stub.HealthCheck(smg.HealthCheckRequest())).healthy
        assert (await status(gateway.stub.Generate(request())))[0] == "UNAVAILABLE"
        assert (await answers(running))[-1].complete.finish_reason == "length"
        await stopping
