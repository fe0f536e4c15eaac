"""A caller that leaves stops the engine, whatever it asked for, by which face, and when.

stage     the request is cancelled
--------  --------------------------------------------------------------------------------
waiting   while it waits for a permit; the engine never begins it
silent    after its permit, before the engine's first output
middle    in the middle of its streamed output
plain     while the engine works on a response that is sent at once

An embedding has one response and no stream, so its "silent" is "plain", and it has no "middle".
Session carries text only; over it every call is streamed or single_message.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from aiohttp import ClientConnectionError

from inference.config import ModelConfig
from inference.registry import ServedModel
from isthmus.session.v1alpha1.session_pb2 import EdgeHello, Open
from isthmus.v1.chat_pb2 import ROLE_USER, ChatInput
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.contract.test_session import Wire

STAGES = ("waiting", "silent", "middle", "plain")
# Cues by kind and stage: an engine that would work for minutes.
LONG_TEXT = {"tokens": 4000, "step_seconds": 0.01}
SILENT_TEXT = {"prefill_seconds": 60.0}
LONG_IMAGE = {"steps": 150, "step_seconds": 0.05}
SILENT_IMAGE = {"steps": 1, "step_seconds": 60.0}
LONG_EMBEDDING = {"seconds": 60}
PATHS = {
    "chat": "/v1/chat/completions",
    "response": "/v1/responses",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "image": "/v1/images/generations",
}
MODELS = {"embedding": EMBEDDING.id, "image": IMAGE.id}
Send = Callable[[Stack, str, str], Awaitable[None]]


@pytest.fixture
def transport(face: str) -> str:
    """The edge's transport; it matters for REST only."""
    return "generate" if face == "rest-generate" else "session"


def cue(kind: str, stage: str) -> str:
    if kind == "embedding":
        return json.dumps(LONG_EMBEDDING)
    long, silent = (LONG_IMAGE, SILENT_IMAGE) if kind == "image" else (LONG_TEXT, SILENT_TEXT)
    return json.dumps(silent if stage == "silent" else long)


async def over_rest(stack: Stack, kind: str, stage: str) -> None:
    """Sends the request and reads its response, until it is cancelled."""
    text, body = cue(kind, stage), dict[str, Any](model=MODELS.get(kind, TEXT.id))
    match kind:
        case "chat":
            body |= {"messages": [{"role": "user", "content": text}], "max_tokens": 4000}
        case "response":
            body |= {"input": text, "max_output_tokens": 4000}
        case "completion":
            body |= {"prompt": text, "max_tokens": 4000}
        case "embedding":
            body |= {"input": text}
        case "image":
            body |= {"prompt": text, "size": "64x64"}
    if kind != "embedding":
        body["stream"] = stage != "plain"
    async with stack.http.post(PATHS[kind], json=body) as response:
        await response.read()


def generate_request(kind: str, stage: str) -> GenerateRequest:
    text = cue(kind, stage)
    request = GenerateRequest(model=TEXT.id)
    request.output.single_message = stage == "plain"
    if kind == "chat":
        request.chat.CopyFrom(ChatInput())
        request.chat.messages.add(role=ROLE_USER).parts.add(text=text)
    else:
        request.text = text
    return request


async def over_grpc(stack: Stack, kind: str, stage: str) -> None:
    if kind == "embedding":
        inputs = [EmbedInput(text=cue(kind, stage))]
        await stack.stub.Embed(EmbedRequest(model=EMBEDDING.id, inputs=inputs))
        return
    if kind == "image":
        call: Any = stack.stub.GenerateImage(
            GenerateImageRequest(model=IMAGE.id, prompt=cue(kind, stage))
        )
    else:
        call = stack.stub.Generate(generate_request(kind, stage))
    try:
        async for _ in call:
            pass
    finally:
        # Once in some hundred times, grpc.aio does not cancel the call with the task that reads it.
        call.cancel()


async def over_session(stack: Stack, kind: str, stage: str) -> None:
    """A call on a session of its own; a cancel is a message, and the session goes on."""
    wire = Wire(stack.server, stack.channel)
    await wire.send(hello=EdgeHello(revision=1))
    await wire.read()
    await wire.send(opens=[Open(call_id=1, request=generate_request(kind, stage))])

    async def read_to_the_end() -> None:
        while 1 not in wire.statuses and await wire.read() is not None:
            pass

    # A task of its own: cancelling a read would end the whole stream.
    reading = asyncio.create_task(read_to_the_end())
    try:
        await asyncio.wait([reading])
    finally:
        await wire.send(cancels=[1])
        await reading
        assert wire.statuses[1] == grpc.StatusCode.CANCELLED.value[0]
        wire.stream.cancel()


FACES: dict[str, Send] = {
    "rest-session": over_rest,
    "rest-generate": over_rest,
    "grpc": over_grpc,
    "session": over_session,
}


def cells() -> list[tuple[str, str, str]]:
    """Every (face, kind, stage) that exists."""
    return [
        (face, kind, stage)
        for face in FACES
        for kind in PATHS
        for stage in STAGES
        if not (face == "session" and kind in MODELS)
        # The transport of the edge is for text only.
        if not (face == "rest-generate" and kind in MODELS)
        if not (kind == "embedding" and stage in ("silent", "middle"))
        # Over gRPC it is a chat.
        if not (kind == "response" and face in ("grpc", "session"))
    ]


@dataclass(frozen=True)
class Progress:
    """The counters of an engine, and of the edge and the service around it."""

    stack: Stack
    served: ServedModel

    @property
    def engine(self) -> Any:
        return self.served.engine

    @property
    def work(self) -> int:
        """Tokens, rows or steps that the engine has made."""
        made: int = self.engine.health().generated_tokens
        return made + getattr(self.engine, "steps_done", 0)

    def idle(self) -> bool:
        admission = self.served.admission
        return not (
            self.engine.health().running
            or admission.running
            or admission.queued
            or self.stack.server.registry.running_calls
            or self.stack.edge.requests
        )


@asynccontextmanager
async def cancelled(request: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancels the request at the end."""
    try:
        yield
    finally:
        request.cancel()
        with suppress(asyncio.CancelledError, ClientConnectionError, grpc.aio.AioRpcError):
            await request


@pytest.mark.parametrize(("face", "kind", "stage"), cells())
async def test_cancelled_request_stops_the_engine(
    start_stack: StartStack, face: str, kind: str, stage: str
) -> None:
    def one_at_a_time(model: ModelConfig) -> ModelConfig:
        return ModelConfig(
            id=model.id,
            engine=model.engine,
            engine_args={"step_seconds": 0.01} if model is TEXT else {},
            max_running=1,
        )

    stack = await start_stack(*map(one_at_a_time, (TEXT, EMBEDDING, IMAGE)))
    served = {s.config.id: s for s in stack.server.registry.models}[MODELS.get(kind, TEXT.id)]
    progress, send = Progress(stack, served), FACES[face]
    if stage == "waiting":
        first = asyncio.create_task(over_grpc(stack, kind, "silent"))
        async with cancelled(first):
            await eventually(lambda: served.engine.health().running)
            request = asyncio.create_task(send(stack, kind, "middle"))
            async with cancelled(request):
                await eventually(lambda: served.admission.queued)
            await eventually(lambda: not served.admission.queued)
            assert served.engine.health().running == 1
            assert progress.work == 0
        await eventually(progress.idle)
        assert progress.work == 0
        return
    request = asyncio.create_task(send(stack, kind, stage))
    async with cancelled(request):
        await eventually(lambda: served.engine.health().running)
        if kind != "embedding" and stage in ("middle", "plain"):
            await eventually(lambda: progress.work >= 3)
        assert not request.done()
    await eventually(progress.idle)
    made = progress.work
    await asyncio.sleep(0.1)
    assert progress.work == made
    assert made < (100 if kind == "image" else 4000)
    if stage == "silent" or kind == "embedding":
        assert made == 0
