"""GenerateImage over gRPC, with the scripted image engine."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image as PillowImage

from inference.config import AliasConfig, ModelConfig
from inference.registry import ServedModel
from inference.server import InferenceServer
from inference.service import InferenceService
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, ImageFormat
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest, ModelKind
from keys import ConfigError
from tests.conftest import EMBEDDING, TEXT, eventually, running_server
from tests.contract.test_grpc import details

SLOW = {"steps": 150, "step_seconds": 0.05}


@dataclass(frozen=True)
class Service:
    """A running service and a client of it."""

    server: InferenceServer
    stub: InferenceServiceStub

    @property
    def served(self) -> ServedModel:
        return next(m for m in self.server.registry.models if m.config.id == "picture")

    @property
    def engine(self) -> Any:
        return self.served.engine

    def idle(self) -> bool:
        """True if no request runs, waits or holds a permit."""
        admission = self.served.admission
        busy = admission.running + admission.queued + self.engine.health().running
        return not busy and not self.server.registry.running_calls

    async def parts(self, **fields: Any) -> list[GenerateImageResponse]:
        return [part async for part in self.stub.GenerateImage(asking(**fields))]

    async def failure(self, **fields: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.parts(**fields)
        return caught.value


StartService = Callable[..., Awaitable[Service]]


def asking(**fields: Any) -> GenerateImageRequest:
    return GenerateImageRequest(**{"model": "picture", "prompt": "a red heart"} | fields)


@pytest.fixture
async def start_service() -> AsyncIterator[StartService]:
    """Starts services that end with the test; keyword arguments go to the image model's config."""
    async with AsyncExitStack() as ends:

        async def start(*others: ModelConfig, **settings: Any) -> Service:
            model = ModelConfig(id="picture", engine="scripted-image", **settings)
            server = await ends.enter_async_context(running_server(*others, model))
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            ends.push_async_callback(channel.close)
            return Service(server, InferenceServiceStub(channel))

        yield start


@pytest.fixture
async def service(start_service: StartService) -> Service:
    """An image model with an alias, a text model and an embedding model."""
    alias = AliasConfig(name="dall-e-2")
    return await start_service(TEXT, EMBEDDING, aliases=(alias,), engine_args={"steps": 4})


def kinds(parts: list[GenerateImageResponse]) -> list[str]:
    return [part.ListFields()[0][0].name for part in parts]


async def test_messages_are_sent_once_and_in_order(service: Service) -> None:
    parts = await service.parts(n=2, partial_images=1, seed=5)
    assert kinds(parts) == [
        *("admitted", "progress", "progress", "partial_image", "partial_image"),
        *("progress", "progress", "image", "image", "usage"),
    ]
    admitted = parts[0].admitted
    assert (admitted.model, admitted.requested_model) == ("picture", "picture")
    assert admitted.prompt_tokens == 3
    assert admitted.call_id
    assert admitted.created > 1_600_000_000
    assert admitted.system_fingerprint
    progress = [part.progress for part in parts if part.HasField("progress")]
    assert [(p.step, p.total_steps) for p in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    previews = [part.partial_image for part in parts if part.HasField("partial_image")]
    assert [(p.index, p.partial_index, p.seed) for p in previews] == [(0, 0, 5), (1, 0, 6)]
    images = [part.image for part in parts if part.HasField("image")]
    assert [(i.index, i.seed) for i in images] == [(0, 5), (1, 6)]
    assert parts[-1].usage.prompt_tokens == 3
    assert parts[-1].timings.total_ms >= parts[-1].timings.first_output_ms > 0
    assert parts[-1].timings.HasField("queue_ms")
    await eventually(service.idle)


@pytest.mark.parametrize(
    ("format", "mime_type"),
    [
        (ImageFormat.IMAGE_FORMAT_UNSPECIFIED, "image/png"),
        (ImageFormat.IMAGE_FORMAT_PNG, "image/png"),
        (ImageFormat.IMAGE_FORMAT_JPEG, "image/jpeg"),
        (ImageFormat.IMAGE_FORMAT_WEBP, "image/webp"),
    ],
)
async def test_image_has_the_requested_format_and_size(
    service: Service, format: ImageFormat, mime_type: str
) -> None:
    parts = await service.parts(format=format, width=300, height=70, seed=3)
    (image,) = [part.image for part in parts if part.HasField("image")]
    assert (image.mime_type, image.width, image.height) == (mime_type, 300, 70)
    opened = PillowImage.open(io.BytesIO(image.data))
    assert (opened.size, opened.get_format_mimetype()) == ((300, 70), mime_type)


async def test_default_size_and_steps_are_the_models(service: Service) -> None:
    parts = await service.parts()
    (image,) = [part.image for part in parts if part.HasField("image")]
    assert (image.width, image.height) == (64, 64)
    assert parts[1].progress.total_steps == 4


async def test_lower_quality_makes_smaller_files(service: Service) -> None:
    sizes = []
    for quality in (None, 100, 10):
        parts = await service.parts(format=ImageFormat.IMAGE_FORMAT_JPEG, quality=quality, seed=9)
        sizes += [len(part.image.data) for part in parts if part.HasField("image")]
    assert sizes[0] == sizes[1] > sizes[2]


async def test_model_list_has_the_image_capabilities(service: Service) -> None:
    models = (await service.stub.ListModels(ListModelsRequest())).models
    (model,) = [model for model in models if model.id == "picture"]
    assert model.kind == ModelKind.MODEL_KIND_IMAGE
    assert model.ready
    assert (model.image.native_width, model.image.native_height) == (64, 64)
    assert (model.image.max_images, model.image.default_steps) == (10, 4)
    assert [alias.name for alias in model.aliases] == ["dall-e-2"]
    assert not model.aliases[0].HasField("context_length")


@pytest.mark.parametrize("name", ["", "dall-e-2"])
async def test_model_is_found_by_alias_or_without_a_name(service: Service, name: str) -> None:
    parts = await service.parts(model=name)
    assert parts[0].admitted.model == "picture"
    assert parts[0].admitted.requested_model == name


# Refusals


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
        ({"prompt": "x " * 65}, "string_above_max_length", "prompt"),
        ({"negative_prompt": "x" * 32_001}, "string_above_max_length", "negative_prompt"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 11}, "integer_above_max_value", "n"),
        ({"steps": 0}, "integer_below_min_value", "steps"),
        ({"steps": 151}, "integer_above_max_value", "steps"),
        ({"quality": 101}, "integer_above_max_value", "quality"),
        ({"partial_images": 4}, "integer_above_max_value", "partial_images"),
        ({"guidance_scale": -0.1}, "decimal_below_min_value", "guidance_scale"),
        ({"guidance_scale": 50.1}, "decimal_above_max_value", "guidance_scale"),
        ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale"),
        ({"format": 4}, "invalid_value", "format"),
        ({"width": 64}, "invalid_size", "size"),
        ({"height": 64}, "invalid_size", "size"),
        ({"width": 0, "height": 0}, "invalid_size", "size"),
        ({"width": 63, "height": 64}, "invalid_size", "size"),
        ({"width": 64, "height": 2049}, "invalid_size", "size"),
        ({"width": 2048, "height": 1172}, "invalid_size", "size"),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "invalid_size", "size"),
        ({"model": "nope"}, "model_not_found", None),
        ({"model": "scripted"}, "model_not_capable", "model"),
        ({"prompt": '{"fail": "unsafe"}'}, "content_policy_violation", None),
    ],
)
async def test_invalid_request_is_refused_with_reason_and_param(
    service: Service, fields: dict[str, Any], reason: str, param: str | None
) -> None:
    assert details(await service.failure(**fields)) == (reason, param)
    await eventually(service.idle)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x" * 32_000},
        {"n": 10, "steps": 1},
        {"steps": 150},
        {"quality": 0, "partial_images": 3, "guidance_scale": 50.0},
        {"width": 64, "height": 2048},
        {"width": 2048, "height": 1171},
    ],
)
async def test_request_at_the_limits_is_accepted(service: Service, fields: dict[str, Any]) -> None:
    assert kinds(await service.parts(**fields))[-1] == "usage"


async def test_image_model_refuses_generate_and_embed(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.Generate(GenerateRequest(model="picture", text="x")):
            pass
    assert details(caught.value) == ("model_not_capable", "model")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Embed(EmbedRequest(model="picture", inputs=[EmbedInput(text="x")]))
    assert details(caught.value)[0] == "embeddings_not_allowed"


def test_image_engine_has_a_running_limit_of_1() -> None:
    assert ModelConfig(id="p", engine="scripted-image", max_running=1).running_limit == 1
    with pytest.raises(ConfigError, match="max_running"):
        ModelConfig(id="p", engine="scripted-image", max_running=2)
    with pytest.raises(ConfigError, match="source"):
        ModelConfig(id="p", engine="diffusers")


# Faults


@pytest.mark.parametrize("fail", ["start", "mid", "late"])
async def test_engine_exception_is_not_exposed(service: Service, fail: str) -> None:
    error = await service.failure(prompt=f'{{"fail": "{fail}"}}')
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details(error)[0] == "server_error"
    assert "canary" not in f"{error.details()}{error.trailing_metadata()}"
    await eventually(service.idle)
    assert await service.parts()


async def test_second_out_of_memory_ends_the_engine(
    service: Service,
) -> None:
    error = await service.failure(prompt='{"fail": "memory"}')
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error) == ("out_of_memory", None)
    status = rpc_status.from_call(error)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.seconds >= 1
    assert await service.parts()
    assert not service.server.registry.dead.is_set()
    error = await service.failure(prompt='{"fail": "memory"}')
    assert details(error)[0] == "engine_died"
    assert service.server.registry.dead.is_set()


async def test_dead_engine_is_reported_to_the_registry(service: Service) -> None:
    error = await service.failure(prompt='{"fail": "die"}')
    assert details(error)[0] == "engine_died"
    assert service.server.registry.dead.is_set()


# Cancellation, deadlines, queue and drain


async def test_cancelled_call_stops_the_pipeline(start_service: StartService) -> None:
    service = await start_service(engine_args=SLOW)
    call = service.stub.GenerateImage(asking())
    async for part in call:
        if part.progress.step == 2:
            break
    call.cancel()
    await eventually(service.idle)
    # The running step ends, and one more may begin before the engine sees the cancellation.
    assert service.engine.steps_done <= 4


async def test_deadline_stops_the_pipeline(start_service: StartService) -> None:
    service = await start_service(engine_args=SLOW)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.GenerateImage(asking(), timeout=0.3):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(service.idle)
    assert service.engine.steps_done < 100


async def test_deadline_ends_a_call_to_a_hung_engine(start_service: StartService) -> None:
    service = await start_service(engine_args={"fail": "hang"})
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in service.stub.GenerateImage(asking(), timeout=0.2):
            pass
    await eventually(service.idle)


async def test_one_request_runs_and_max_queued_requests_wait(start_service: StartService) -> None:
    service = await start_service(engine_args=SLOW, max_queued=1, queue_timeout_seconds=0.3)
    first = service.stub.GenerateImage(asking())
    assert (await first.read()).HasField("admitted")
    second = asyncio.create_task(service.failure())
    await eventually(lambda: service.served.admission.queued == 1)
    third = await service.failure()
    assert third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(third)[0] == "server_overloaded"
    waited = await second
    assert waited.code() is grpc.StatusCode.UNAVAILABLE
    assert details(waited)[0] == "queue_timeout"
    assert service.engine.health().running == 1
    first.cancel()
    await eventually(service.idle)


async def test_queued_requests_each_get_their_own_image(start_service: StartService) -> None:
    service = await start_service(engine_args={"steps": 3, "step_seconds": 0.02})
    answers = await asyncio.gather(*(service.parts(seed=seed) for seed in range(4)))
    assert [[p.image.seed for p in parts if p.HasField("image")] for parts in answers] == [
        [0],
        [1],
        [2],
        [3],
    ]
    await eventually(service.idle)


async def test_draining_service_finishes_a_running_request(start_service: StartService) -> None:
    service = await start_service(engine_args={"steps": 20, "step_seconds": 0.05})
    parts = aiter(service.stub.GenerateImage(asking()))
    assert (await anext(parts)).HasField("admitted")
    drain = asyncio.create_task(service.server.drain())
    await eventually(service.server.registry.draining.is_set)
    refused = await service.failure()
    assert details(refused)[0] == "draining"
    assert kinds([part async for part in parts])[-2:] == ["image", "usage"]
    await drain


async def test_requests_and_prompt_tokens_are_charged(start_service: StartService) -> None:
    service = await start_service(requests_per_minute=2, tokens_per_minute=100)
    parts = await service.parts()
    limits = parts[0].admitted.rate_limits
    assert (limits.requests.limit, limits.requests.remaining) == (2, 1)
    assert 97 <= limits.tokens.remaining < 100
    await service.failure(n=0)  # a refused request costs nothing
    await service.parts()
    error = await service.failure()
    assert details(error)[0] == "rate_limit_exceeded"


class RefusedError(Exception):
    """Raised by abort(), where gRPC raises its own exception."""


async def test_call_is_aborted_if_the_caller_stops_reading(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.service.STALL_SECONDS", 0.05)
    taken: list[GenerateImageResponse] = []

    class Context:
        """An RPC whose caller reads nothing after the first progress message."""

        def invocation_metadata(self) -> tuple[()]:
            return ()

        def time_remaining(self) -> None:
            return None

        async def send_initial_metadata(self, metadata: tuple[()]) -> None:
            pass

        async def write(self, message: GenerateImageResponse) -> None:
            taken.append(message)
            if message.HasField("progress"):
                await asyncio.Event().wait()

        async def abort(self, code: grpc.StatusCode, *_: object) -> None:
            raise RefusedError(code)

    rpc: Any = Context()
    with pytest.raises(RefusedError) as caught:
        await InferenceService(service.server.registry).GenerateImage(asking(), rpc)
    assert caught.value.args == (grpc.StatusCode.RESOURCE_EXHAUSTED,)
    assert kinds(taken) == ["admitted", "progress"]
    await eventually(service.idle)
