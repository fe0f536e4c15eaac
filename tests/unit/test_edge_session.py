"""The edge's side of a session against a stream that ends when a test says so."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import grpc

from edge.upstream.session_transport import MAX_MESSAGE_BYTES, REVISION, SessionTransport
from edge.upstream.transport import CallOptions
from isthmus.session.v1alpha1.session_pb2 import ServiceHello, SessionRequest, SessionResponse
from isthmus.v1.generate_pb2 import GenerateRequest


class Stream:
    """What a stub's Session returns."""

    def __init__(self, ended: grpc.StatusCode | None = None) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.half_closed = asyncio.Event()
        self.written: list[SessionRequest] = []
        self._ended = ended

    def __call__(self, metadata: object) -> Stream:
        return self

    async def write(self, message: SessionRequest) -> None:
        if self._ended is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        self.written.append(message)

    async def read(self) -> Any:
        return await self.incoming.get()

    async def done_writing(self) -> None:
        self.half_closed.set()

    async def code(self) -> grpc.StatusCode | None:
        return self._ended

    async def details(self) -> str:
        return ""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata

    def cancel(self) -> None:
        pass


class Owner:
    """Has the transport, and is told of its ends."""

    def __init__(self, stream: Stream) -> None:
        self.told: list[str] = []
        stub: Any = type("Stub", (), {"Session": stream})
        self.transport = SessionTransport(
            stub,
            (),
            on_unsupported=lambda: self.told.append("unsupported"),
            on_going_away=lambda: self.told.append("going away"),
        )


async def test_a_service_that_ended_before_the_first_write_speaks_no_session() -> None:
    owner = Owner(Stream(ended=grpc.StatusCode.UNIMPLEMENTED))
    await owner.transport.ready()
    assert owner.told == ["unsupported"]


async def test_an_idle_session_is_half_closed_when_the_service_says_goodbye() -> None:
    stream = Stream()
    owner = Owner(stream)
    stream.incoming.put_nowait(SessionResponse(hello=ServiceHello(revision=REVISION)))
    await owner.transport.ready()
    stream.incoming.put_nowait(SessionResponse(going_away=True))
    async with asyncio.timeout(10):
        await stream.half_closed.wait()
    assert owner.told == ["going away"]
    # The service ends the stream only now.
    stream._ended = grpc.StatusCode.OK
    stream.incoming.put_nowait(grpc.aio.EOF)


async def test_large_requests_do_not_share_a_message() -> None:
    stream = Stream()
    owner = Owner(stream)
    stream.incoming.put_nowait(SessionResponse(hello=ServiceHello(revision=REVISION)))
    await owner.transport.ready()
    for size in (10, MAX_MESSAGE_BYTES, 10, 10):
        request = GenerateRequest(model="m", text="x" * size)
        owner.transport.open(request, Mock(), CallOptions(60, {}, ""))
    for _ in range(20):
        await asyncio.sleep(0)
    assert [len(message.opens) for message in stream.written if message.opens] == [2, 2]
    await owner.transport.close()


async def test_every_second_step_is_acknowledged_where_four_may_go_by() -> None:
    stream = Stream()
    owner = Owner(stream)
    hello = ServiceHello(revision=REVISION, step_credit=4)
    stream.incoming.put_nowait(SessionResponse(hello=hello))
    await owner.transport.ready()
    for step in range(1, 6):
        stream.incoming.put_nowait(SessionResponse(step=step))
        for _ in range(10):
            await asyncio.sleep(0)
    told = [
        message.acknowledged_step for message in stream.written if not message.HasField("hello")
    ]
    assert told == [2, 4]
    await owner.transport.close()
