"""Callers of the public RPCs that do not read: what gRPC holds of them is bounded, and returns."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from inference.config import ModelConfig
from inference.errors import InferenceError
from inference.registry import Registry
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse, OutputOptions
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.conftest import TEXT, eventually, running_server
from tests.contract.test_grpc import details

BYTES = 1_000_000
LARGE = ModelConfig(id="large", engine="scripted", engine_args={"text": "w" * BYTES, "tokens": 1})
# A PNG of 0.8 MB.
IMAGES = ModelConfig(
    id="images", engine="scripted-image", engine_args={"noise": True, "width": 512, "height": 512}
)
# Without the probe gRPC takes 64 KiB of a response that nobody reads, and no more.
UNREAD = (("grpc.http2.bdp_probe", 0),)


@pytest.fixture(autouse=True)
def _short_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.service.STALL_SECONDS", 0.2)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Registry, Any]]:
    async with (
        running_server(TEXT, LARGE, IMAGES) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", UNREAD) as channel,
    ):
        yield server.registry, InferenceServiceStub(channel)


def whole(model: str = "large") -> GenerateRequest:
    return GenerateRequest(model=model, text="x", output=OutputOptions(single_message=True))


async def refusal(call: Any) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return details(caught.value)


def all_large_messages() -> list[object]:
    kinds = GenerateResponse, GenerateImageResponse
    return [m for m in gc.get_objects() if isinstance(m, kinds) and m.ByteSize() > BYTES // 2]


@pytest.fixture
def large_messages() -> Callable[[], list[object]]:
    """Finds the large messages that are there, except what earlier tests have left."""
    left = all_large_messages()
    return lambda: [m for m in all_large_messages() if all(m is not each for each in left)]


async def test_caller_that_reads_too_late_gets_the_message_and_why_there_is_no_more(
    large_messages: Callable[[], list[object]],
) -> None:
    async with serving() as (registry, stub), asyncio.timeout(20):
        call = stub.Generate(whole())
        await eventually(lambda: registry.sending.used)
        # The call is given up; of the budget it has its request.
        await eventually(lambda: registry.running_calls == 0)
        assert registry.memory.used == whole().ByteSize()
        assert registry.sending.used > BYTES
        assert not large_messages(), "only gRPC has it"
        message = await call.read()
        assert len(message.deltas[0].text) == BYTES
        assert await refusal(call) == ("slow_reader", None)
        await eventually(lambda: registry.sending.used == 0)


async def test_output_behind_an_unread_message_is_dropped(
    large_messages: Callable[[], list[object]],
) -> None:
    async with serving() as (registry, stub), asyncio.timeout(20):
        call = stub.GenerateImage(GenerateImageRequest(model="images", prompt="x", n=5))
        await eventually(lambda: registry.sending.used)
        await eventually(large_messages)
        await eventually(lambda: registry.running_calls == 0)
        assert not large_messages()
        call.cancel()


async def test_unread_output_is_bounded_after_its_calls_were_given_up() -> None:
    async with serving() as (registry, stub), asyncio.timeout(30):
        registry.sending.limit = 3 * BYTES + BYTES // 2
        calls = []
        for _ in range(3):
            calls.append(stub.Generate(whole()))
            await eventually(lambda: registry.sending.used > len(calls) * BYTES)
        await eventually(lambda: registry.running_calls == 0)
        assert await refusal(stub.Generate(whole())) == ("out_of_memory", None)
        assert [part async for part in stub.Generate(whole(TEXT.id))], "small answers are sent"
        calls.pop().cancel()
        await eventually(lambda: registry.sending.used < 3 * BYTES)
        assert [part async for part in stub.Generate(whole())]
        for call in calls:
            call.cancel()
        await eventually(lambda: registry.sending.used == 0)


async def test_caller_that_reads_may_get_more_than_grpc_may_hold() -> None:
    async with serving() as (registry, stub), asyncio.timeout(30):
        registry.sending.limit = BYTES
        call = stub.GenerateImage(GenerateImageRequest(model="images", prompt="x", n=5))
        sizes = [len(part.image.data) async for part in call if part.HasField("image")]
        assert len(sizes) == 5
        assert sum(sizes) > 3 * BYTES


async def test_failed_call_is_freed_without_a_collection() -> None:
    def errors() -> int:
        return sum(isinstance(thing, InferenceError) for thing in gc.get_objects())

    async with serving() as (registry, stub), asyncio.timeout(20):
        gc.collect()
        before = errors()
        gc.disable()
        try:
            registry.sending.limit = BYTES
            assert await refusal(stub.Generate(whole())) == ("out_of_memory", None)
            registry.memory.limit = BYTES
            assert await refusal(stub.Generate(whole())) == ("out_of_memory", None)
            await eventually(lambda: errors() == before, 5)
        finally:
            gc.enable()


async def test_caller_that_leaves_before_its_status_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (registry, stub), asyncio.timeout(20):
        call = stub.Generate(whole())
        await eventually(lambda: registry.sending.used)
        await eventually(lambda: registry.running_calls == 0)
        call.cancel()
        await eventually(lambda: registry.sending.used == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
