"""The session between edge and inference service, tested from the wire and from the edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import status_pb2

from edge.openai.chat.response import ChatResponse
from edge.upstream import session_transport
from edge.upstream.session_transport import SessionTransport
from edge.upstream.transport import CallOptions, Ended, Receiver
from inference.config import ModelConfig
from inference.server import InferenceServer
from inference.session_state import STEP_CREDIT
from isthmus.session.v1alpha1.session_pb2 import (
    EdgeHello,
    Open,
    ServiceHello,
    SessionRequest,
    SessionResponse,
)
from isthmus.session.v1alpha1.session_pb2_grpc import (
    SessionServiceServicer,
    SessionServiceStub,
    add_SessionServiceServicer_to_server,
)
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from tests.conftest import Stack, StartStack, eventually, running_server
from tests.contract.test_stops import chat, post, slow_model, stopped

PACED = ModelConfig(
    id="scripted", engine="scripted", engine_args={"step_seconds": 0.005, "tokens": 50}
)


class Wire:
    """A client of the Session RPC that the test drives message by message."""

    def __init__(self, server: InferenceServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.stream = SessionServiceStub(channel).Session()
        self.texts: dict[int, str] = {}
        self.statuses: dict[int, int] = {}
        self.steps: list[SessionResponse] = []

    async def send(self, **parts: object) -> None:
        await self.stream.write(SessionRequest(**parts))

    async def open(self, *call_ids: int, text: str = "x", timeout_ms: int = 0) -> None:
        opens = [
            Open(
                call_id=call_id,
                request=GenerateRequest(model="scripted", text=text),
                timeout_ms=timeout_ms,
            )
            for call_id in call_ids
        ]
        await self.send(opens=opens)

    async def read(self, acknowledge: bool = True) -> SessionResponse | None:
        message = await self.stream.read()
        if not isinstance(message, SessionResponse):
            return None
        if message == SessionResponse(loads=message.loads) and message.loads:
            return await self.read(acknowledge)
        start = 0
        for call_id, length in zip(message.texts.call_ids, message.texts.lengths, strict=True):
            text = message.texts.text[start : start + length].decode()
            self.texts[call_id] = self.texts.get(call_id, "") + text
            start += length
        for frame in message.frames:
            assert frame.call_id not in self.statuses, "nothing follows the end"
            for delta in frame.response.deltas:
                self.texts[frame.call_id] = self.texts.get(frame.call_id, "") + delta.text
            if frame.HasField("status"):
                self.statuses[frame.call_id] = status_pb2.Status.FromString(frame.status).code
        if message.HasField("step"):
            self.steps.append(message)
            if acknowledge:
                await self.send(acknowledged_step=message.step)
        return message


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with running_server(PACED) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            wire = Wire(server, channel)
            await wire.send(hello=EdgeHello(revision=1))
            hello = await wire.read()
            assert hello is not None
            assert (hello.hello.revision, list(hello.hello.models)) == (1, ["scripted"])
            yield wire
            wire.stream.cancel()


FULL = "".join(f"w{n} " for n in range(50))


async def test_calls_of_one_step_share_a_message(wire: Wire) -> None:
    await wire.open(*range(1, 33))
    while len(wire.statuses) < 32:
        await wire.read()
    assert wire.texts == dict.fromkeys(range(1, 33), FULL)
    assert set(wire.statuses.values()) == {0}
    together = [message for message in wire.steps if len(message.texts.call_ids) == 32]
    assert len(together) >= 25, "calls that step together leave together"
    assert [message.step for message in wire.steps] == list(range(1, len(wire.steps) + 1))


async def test_text_is_merged_until_the_edge_acknowledges(wire: Wire) -> None:
    await wire.open(1)
    for _ in range(STEP_CREDIT):
        await wire.read(acknowledge=False)
    served = wire.server.registry.models[0]
    await eventually(lambda: served.engine.health().running == 0)
    assert wire.texts.get(1, "") != FULL
    await wire.send(acknowledged_step=STEP_CREDIT)
    await wire.read()
    assert wire.texts[1] == FULL
    assert wire.statuses == {1: 0}
    assert len(wire.steps) == STEP_CREDIT + 1


async def test_cancel_is_accepted_before_during_and_after_a_call(wire: Wire) -> None:
    await wire.send(cancels=[7])  # never opened
    opened = Open(call_id=1, request=GenerateRequest(model="scripted", text="x"))
    await wire.send(opens=[opened], cancels=[1])  # before its first step
    while 1 not in wire.statuses:
        await wire.read()
    assert wire.statuses[1] == grpc.StatusCode.CANCELLED.value[0]
    await wire.send(cancels=[1])  # after its end
    await wire.open(2)
    while 2 not in wire.statuses:
        await wire.read()
    assert (wire.texts, wire.statuses[2]) == ({2: FULL}, 0)


async def test_call_beyond_its_deadline_ends_with_deadline_exceeded(wire: Wire) -> None:
    await wire.open(1, timeout_ms=60)
    while 1 not in wire.statuses:
        await wire.read()
    assert wire.statuses[1] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert wire.server.registry.models[0].engine.health().running == 0


async def test_open_is_ignored_unless_its_call_id_is_the_highest(wire: Wire) -> None:
    await wire.open(5)
    await wire.open(5, 4, 6)
    while 6 not in wire.statuses:
        await wire.read()
    assert wire.texts == {5: FULL, 6: FULL}


async def test_calls_are_cancelled_when_the_edge_disconnects(wire: Wire) -> None:
    await wire.open(*range(1, 9))
    await wire.read()
    served = wire.server.registry.models[0]
    await eventually(lambda: served.engine.health().running == 8)
    wire.stream.cancel()
    await eventually(lambda: served.engine.health().running == 0)
    assert wire.server.registry.running_calls == 0


async def test_calls_finish_after_the_edge_half_closes(wire: Wire) -> None:
    await wire.open(1)
    await wire.stream.done_writing()
    while await wire.read(acknowledge=False) is not None:
        pass
    assert (wire.texts, wire.statuses) == ({1: FULL}, {1: 0})
    assert await wire.stream.code() is grpc.StatusCode.OK


async def test_drain_sends_going_away_and_lets_calls_finish(wire: Wire) -> None:
    await wire.open(1)
    await wire.read()
    drain = asyncio.create_task(wire.server.drain())
    going_away = False
    while (message := await wire.read()) is not None:
        if message.going_away:
            going_away = True
            await wire.open(2)
        if len(wire.statuses) == 2:
            break
    # The edge ends the stream: writing to an ended one would cost it the messages it has not read.
    end = asyncio.create_task(wire.read())
    assert not (await asyncio.wait([end], timeout=0.2))[0]
    await wire.stream.done_writing()
    assert await end is None
    assert going_away
    assert wire.texts[1] == FULL
    assert wire.statuses == {1: 0, 2: grpc.StatusCode.UNAVAILABLE.value[0]}
    assert await wire.stream.code() is grpc.StatusCode.OK
    await drain


async def test_session_without_a_hello_is_refused() -> None:
    async with running_server(PACED) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stream = SessionServiceStub(channel).Session()
            await stream.write(SessionRequest(cancels=[1]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def transport() -> str:
    """The tests below test the edge, with the session transport only."""
    return "session"


async def test_edge_sends_all_calls_over_one_session(stack: Stack) -> None:
    answers = await asyncio.gather(
        *(post(stack, "/v1/chat/completions", json=chat(max_tokens=2)) for _ in range(20))
    )
    assert {status for status, _, _ in answers} == {200}
    (replica,) = stack.edge.router.upstreams[0].replicas.values()
    assert replica._session is not None
    assert not replica._generations._tasks


async def test_edge_falls_back_to_generate_if_the_service_has_no_session(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.server.add_SessionServiceServicer_to_server", lambda *_: None)
    stack = await start_stack()
    status, answer, _ = await post(stack, "/v1/chat/completions", json=chat(max_tokens=2))
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "w0 w1 ")


async def test_edge_falls_back_to_generate_if_the_service_is_older(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.upstream.session_state.REVISION", 2)
    stack = await start_stack()
    status, _, _ = await post(stack, "/v1/chat/completions", json=chat(max_tokens=2))
    assert status == 200


class Ending(Receiver):
    """Keeps only the status code with which a generation ends."""

    def __init__(self) -> None:
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_text(self, text: str) -> None: ...

    def on_part(self, part: GenerateResponse) -> None: ...

    def on_end(self, status: status_pb2.Status) -> None:
        self.code.set_result(status.code)


async def test_large_concurrent_prompts_all_succeed(stack: Stack) -> None:
    request = GenerateRequest(model="scripted", text="x" * (12 << 20))
    endings = [Ending() for _ in range(7)]  # one message with all of them would exceed gRPC's limit
    for ending in endings:
        stack.edge.router.open(request, ending, CallOptions(20.0, {}, ""))
    assert set(await asyncio.gather(*(ending.code for ending in endings))) == {0}


async def test_plain_responses_of_one_step_may_exceed_the_session_bound_together(
    start_stack: StartStack,
) -> None:
    # 30 responses of 0.8 MB: more than MAX_WAITING_BYTES, although the edge reads at full speed.
    script = {"step_seconds": 2.0, "tokens_per_step": 1600}
    stack = await start_stack(ModelConfig(id="scripted", engine="scripted", engine_args=script))
    text = " ".join(["w" * 500] * 1600)
    body = chat(max_tokens=1600)
    body["messages"][0]["content"] = json.dumps({"text": text, "tokens": 1600})

    async def ask() -> tuple[int, int]:
        async with stack.http.post("/v1/chat/completions", json=body) as response:
            answer = await response.json()
        return response.status, len(answer["choices"][0]["message"]["content"])

    answers = await asyncio.gather(*(ask() for _ in range(30)))
    assert set(answers) == {(200, len(text))}


async def test_lost_session_fails_its_streams_and_is_reopened(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(slow_model())
    port = stack.server.port
    response = await stack.http.post("/v1/chat/completions", json=chat(stream=True))
    await response.content.readany()
    await stack.server.close()
    body = await response.read()
    last = json.loads(body.decode().rstrip().rpartition("data: ")[2])
    assert last["error"]["type"] == "server_error"
    assert b"[DONE]" not in body
    await eventually(lambda: not stack.edge.router.ready())
    async with running_server(PACED, port=port):
        await eventually(stack.edge.router.ready)
        status, _, _ = await post(stack, "/v1/chat/completions", json=chat(max_tokens=2))
        assert status == 200


async def test_exception_in_a_receiver_fails_only_its_own_call(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = await start_stack(slow_model(tokens=30))

    async def ask(number: int) -> int:
        status, _, _ = await post(
            stack, "/v1/chat/completions", json=chat(max_tokens=30, user=str(number), stream=False)
        )
        return status

    real = ChatResponse.part
    failed = []

    def part(self: ChatResponse, part: GenerateResponse) -> bytes:
        if not failed:
            failed.append(1)
            raise RuntimeError("canary-receiver")
        return real(self, part)

    monkeypatch.setattr(ChatResponse, "part", part)
    statuses = await asyncio.gather(*(ask(number) for number in range(4)))
    assert sorted(statuses) == [200, 200, 200, 502]
    await stopped(stack)


class Deaf(SessionServiceServicer):
    """Sends a hello after `hello_seconds` and then pulses, and reads nothing but the hello."""

    def __init__(self, hello_seconds: float) -> None:
        self._hello_seconds = hello_seconds

    async def Session(  # noqa: N802
        self, _: object, context: grpc.aio.ServicerContext
    ) -> None:
        await context.read()
        await asyncio.sleep(self._hello_seconds)
        await context.write(SessionResponse(hello=ServiceHello(revision=1, step_credit=8)))
        while True:
            await context.write(SessionResponse())
            await asyncio.sleep(0.1)


@asynccontextmanager
async def deaf_service(hello_seconds: float) -> AsyncIterator[SessionTransport]:
    server = grpc.aio.server()
    add_SessionServiceServicer_to_server(Deaf(hello_seconds), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = SessionServiceStub(channel)  # type: ignore[no-untyped-call]
        transport = SessionTransport(stub, (), lambda: None, lambda: None)
        yield transport
        await transport.close()
    await server.stop(0)


async def test_service_that_reads_nothing_is_left_although_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_transport, "SILENCE_SECONDS", 1.0)
    async with deaf_service(0) as transport:
        assert await transport.ready()
        ends: list[Ended] = []
        for _ in range(4):
            request = GenerateRequest(model="x", text="x" * 3_000_000)
            transport.open(request, Ending(), ends.append, CallOptions(600.0, {}, ""))
        await eventually(lambda: len(ends) == 4)
        assert {end.status.code for end in ends} == {grpc.StatusCode.UNAVAILABLE.value[0]}
        # What was written may have been read; how much that is, depends on the kernel's buffers.
        sent = [end.sent for end in ends]
        assert sent == sorted(sent, reverse=True)
        assert (sent[0], sent[-1]) == (True, False)
        assert ends[0].silent


async def test_call_that_waits_for_the_hello_ends_at_its_deadline() -> None:
    async with deaf_service(4.0) as transport:
        ends: list[Ended] = []
        request = GenerateRequest(model="x", text="x")
        transport.open(request, Ending(), ends.append, CallOptions(0.1, {}, ""))
        await eventually(lambda: ends, seconds=3.5)
        assert ends[0].status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert not ends[0].sent


async def test_session_without_a_hello_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.session.HELLO_SECONDS", 0.2)
    async with running_server(PACED) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stream = SessionServiceStub(channel).Session()
            await stream.wait_for_connection()
            async with asyncio.timeout(10):
                assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
