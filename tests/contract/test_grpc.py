"""The public gRPC service: messages, statuses with details, limits, health, reflection, keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from isthmus.session.v1alpha1.session_pb2 import EdgeHello, SessionRequest
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceStub
from isthmus.v1.chat_pb2 import ChatInput, ChatMessage, ContentPart, Role, Tool
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import (
    Constraint,
    FinishReason,
    GenerateRequest,
    OutputOptions,
    Sampling,
    Stopping,
    TokenIds,
)
from isthmus.v1.models_pb2 import ListModelsRequest, ModelKind
from keys import create_key
from tests.conftest import Stack, StartStack


def chat(text: str = "hello there", **fields: object) -> GenerateRequest:
    message = ChatMessage(role=Role.ROLE_USER, parts=[ContentPart(text=text)])
    request = GenerateRequest(model="scripted", chat=ChatInput(messages=[message]))
    request.MergeFrom(GenerateRequest(**fields))
    return request


async def failure(stub: object, request: GenerateRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(request):
            pass
    return caught.value


def details(error: grpc.aio.AioRpcError) -> tuple[str, str | None]:
    """Returns reason and param from the ErrorInfo of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "isthmus"
    return info.reason, info.metadata.get("param")


async def test_generate_sends_admitted_text_finish_and_usage_once_in_order(stack: Stack) -> None:
    call = stack.stub.Generate(chat(stopping=Stopping(max_tokens=4)))
    parts = [part async for part in call]
    assert parts[0].admitted.prompt_tokens == 2
    assert parts[0].admitted.model == "scripted"
    assert [part.HasField("admitted") for part in parts].count(True) == 1
    assert "".join(d.text for part in parts for d in part.deltas) == "w0 w1 w2 w3 "
    assert [f.reason for part in parts for f in part.finishes] == [
        FinishReason.FINISH_REASON_LENGTH
    ]
    assert [part.HasField("usage") for part in parts].index(True) == len(parts) - 1
    assert parts[-1].usage.completion_tokens == 4
    assert parts[-1].timings.total_ms > 0


async def test_single_message_sends_all_choices_in_one_message(stack: Stack) -> None:
    options = OutputOptions(single_message=True, n=2)
    parts = [part async for part in stack.stub.Generate(chat(output=options))]
    assert len(parts) == 1
    assert [delta.index for delta in parts[0].deltas] == [0, 1]
    assert all(delta.text.startswith("w0 w1 ") for delta in parts[0].deltas)
    assert parts[0].HasField("admitted")
    assert parts[0].usage.completion_tokens == 32


@pytest.mark.parametrize(
    ("request_", "reason", "param"),
    [
        (GenerateRequest(model="scripted"), "missing_required_parameter", "messages"),
        (GenerateRequest(model="scripted", chat=ChatInput()), "empty_array", "messages"),
        (GenerateRequest(model="scripted", token_ids=TokenIds()), "empty_array", "prompt"),
        (GenerateRequest(model="nope", text="x"), "model_not_found", None),
        (
            chat(sampling=Sampling(temperature=2.1)),
            "decimal_above_max_value",
            "temperature",
        ),
        (chat(sampling=Sampling(top_p=-0.1)), "decimal_below_min_value", "top_p"),
        (chat(sampling=Sampling(temperature=float("nan"))), "invalid_value", "temperature"),
        (chat(output=OutputOptions(n=129)), "integer_above_max_value", "n"),
        (chat(output=OutputOptions(n=0)), "integer_below_min_value", "n"),
        (chat(output=OutputOptions(n=2, best_of=1)), "invalid_request_error", "best_of"),
        (chat(output=OutputOptions(logprobs=21)), "integer_above_max_value", "top_logprobs"),
        (chat(stopping=Stopping(max_tokens=0)), "integer_below_min_value", "max_tokens"),
        (chat(stopping=Stopping(strings=["x"] * 17)), "array_above_max_length", "stop"),
        (chat(stopping=Stopping(strings=[""])), "invalid_value", "stop"),
        (chat(sampling=Sampling(logit_bias={1: 101})), "decimal_above_max_value", "logit_bias"),
        (
            chat(constraint=Constraint(regex="a+")),
            "unsupported_parameter",
            "structured_outputs.regex",
        ),
        (
            chat(constraint=Constraint(json_schema="x" * 70_000)),
            "string_above_max_length",
            "response_format.json_schema.schema",
        ),
        (
            GenerateRequest(
                model="scripted",
                chat=ChatInput(
                    messages=[ChatMessage(role=Role.ROLE_USER, parts=[ContentPart(text="x")])],
                    tools=[Tool(name="t")] * 129,
                ),
            ),
            "array_above_max_length",
            "tools",
        ),
        (chat(stopping=Stopping(max_tokens=5000)), "context_length_exceeded", "messages"),
    ],
)
async def test_grpc_request_beyond_a_limit_is_refused(
    stack: Stack, request_: GenerateRequest, reason: str, param: str | None
) -> None:
    error = await failure(stack.stub, request_)
    assert details(error) == (reason, param)
    assert [part async for part in stack.stub.Generate(chat())]


async def test_grpc_request_at_the_limits_is_accepted(stack: Stack) -> None:
    request = chat(
        sampling=Sampling(temperature=2, top_p=0, presence_penalty=-2, logit_bias={1: 100}),
        stopping=Stopping(strings=["never"] * 16, max_tokens=1),
        output=OutputOptions(n=128, single_message=True),
    )
    parts = [part async for part in stack.stub.Generate(request)]
    assert parts[0].usage.completion_tokens == 128


async def test_max_tokens_are_cut_to_the_context_if_the_caller_says_so(stack: Stack) -> None:
    cut = Stopping(max_tokens=5000, cut_to_context=True)
    request = chat("x " * 4, model="tiny", stopping=cut, output=OutputOptions(single_message=True))
    (part,) = [part async for part in stack.stub.Generate(request)]
    assert part.usage.completion_tokens == 4
    assert part.finishes[0].reason == FinishReason.FINISH_REASON_LENGTH
    request.stopping.max_tokens = 2
    (part,) = [part async for part in stack.stub.Generate(request)]
    assert part.usage.completion_tokens == 2
    error = await failure(stack.stub, chat("x " * 8, model="tiny", stopping=cut))
    assert details(error) == ("context_length_exceeded", "messages")
    assert "(8 in the messages, 1 in the completion)" in str(error.details())


async def test_engine_fault_details_are_not_exposed(stack: Stack) -> None:
    for fail in ("start", "mid"):
        error = await failure(stack.stub, chat(f'{{"fail": "{fail}"}}'))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "canary" not in str(error)
        assert "Scripted" not in str(error)


async def test_embed_packs_vectors_in_input_order(stack: Stack) -> None:
    request = EmbedRequest(
        model="scripted-embedding",
        inputs=[EmbedInput(text="a b c"), EmbedInput(token_ids=TokenIds(ids=[1, 2]))],
    )
    answer = await stack.stub.Embed(request)
    assert answer.dimensions == 8
    assert len(answer.vectors) == 2 * 8 * 4
    assert list(answer.token_counts) == [3, 2]
    alone = await stack.stub.Embed(
        EmbedRequest(model="scripted-embedding", inputs=[request.inputs[0]])
    )
    assert answer.vectors[:32] == alone.vectors


@pytest.mark.parametrize(
    "inputs", [[], [EmbedInput()], [EmbedInput(text="")], [EmbedInput(text="x")] * 2049]
)
async def test_embed_refuses_empty_and_too_many_inputs(
    stack: Stack, inputs: list[EmbedInput]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.stub.Embed(EmbedRequest(model="scripted-embedding", inputs=inputs))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[1] == "input"


async def test_list_models_returns_kinds_aliases_and_limits(stack: Stack) -> None:
    answer = await stack.stub.ListModels(ListModelsRequest())
    text, embedding = answer.models
    assert (text.kind, embedding.kind) == (
        ModelKind.MODEL_KIND_TEXT,
        ModelKind.MODEL_KIND_EMBEDDING,
    )
    assert {alias.name: alias.context_length for alias in text.aliases} == {
        "gpt-4": 4096,  # the model's own limit is smaller than the alias's
        "tiny": 8,
        "org/name": 4096,
    }
    assert embedding.embedding.dimensions == 8
    assert text.ready


async def test_generate_on_an_embedding_model_is_refused(stack: Stack) -> None:
    error = await failure(stack.stub, GenerateRequest(model="scripted-embedding", text="x"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(error) == ("model_not_capable", "model")


async def test_health_covers_services_and_models_and_follows_draining(stack: Stack) -> None:
    health = health_pb2_grpc.HealthStub(stack.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "isthmus.v1.InferenceService", "scripted", "scripted-embedding"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == serving
    watch = health.Watch(health_pb2.HealthCheckRequest(service="scripted"))
    assert (await watch.read()).status == serving
    stack.server.registry.draining.set()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_reflection_lists_inference_and_health_services(stack: Stack) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = stub.ServerReflectionInfo(iter([request]))
    async for reply in replies:
        names = {service.name for service in reply.list_services_response.service}
        break
    assert {"isthmus.v1.InferenceService", "grpc.health.v1.Health"} <= names


@pytest.fixture
def transport() -> str:
    """These tests bypass the edge, so one transport is enough."""
    return "session"


async def test_grpc_requires_a_key_except_for_health(
    start_stack: StartStack, tmp_path: Path
) -> None:
    from tests.conftest import EMBEDDING, TEXT, running_server

    keys = tmp_path / "keys.json"
    _, api = create_key(keys, "someone")
    _, edge = create_key(keys, "edge", scope="edge")
    async with running_server(TEXT, EMBEDDING, keys=keys) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            await _check_keys(channel, api, edge)


async def _check_keys(channel: grpc.aio.Channel, api: str, edge: str) -> None:
    from isthmus.v1.inference_pb2_grpc import InferenceServiceStub

    def bearer(key: str) -> tuple[tuple[str, str]]:
        return (("authorization", f"Bearer {key}"),)

    async def code(call: Callable[[], object]) -> grpc.StatusCode:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    stub, session = InferenceServiceStub(channel), SessionServiceStub(channel)

    async def greet(key: str) -> object:
        stream = session.Session(metadata=bearer(key))
        # The refusal may be there before the hello is written; then the write fails, too.
        with suppress(grpc.aio.AioRpcError):
            await stream.write(SessionRequest(hello=EdgeHello(revision=1)))
        answer = await stream.read()
        stream.cancel()
        return answer

    status = grpc.StatusCode
    assert await code(lambda: stub.ListModels(ListModelsRequest())) is status.UNAUTHENTICATED
    for key, expected in ((api, status.OK), (edge, status.OK), ("x", status.UNAUTHENTICATED)):
        metadata = bearer(key)
        assert (
            await code(lambda m=metadata: stub.ListModels(ListModelsRequest(), metadata=m))
            is expected
        )
    assert await code(lambda: greet(api)) is status.PERMISSION_DENIED
    assert await code(lambda: greet(edge)) is status.OK
    health = health_pb2_grpc.HealthStub(channel)
    assert await code(lambda: health.Check(health_pb2.HealthCheckRequest())) is status.OK
