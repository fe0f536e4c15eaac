"""Sends the requests of plans over HTTP and gRPC, and stores what comes back."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp
import grpc

from bench.soak.judge import Answer
from bench.soak.plan import GRPC, Plan
from isthmus.v1.chat_pb2 import Role
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub

# Seconds after which a request without an end counts as lost.
REQUEST_SECONDS: Final = 30.0
_ROLES: Final = {"user": Role.ROLE_USER, "system": Role.ROLE_SYSTEM}
# Seconds between two tries to connect to an edge, and of all tries together.
_RECONNECT_SECONDS: Final = 0.2
_CONNECT_SECONDS: Final = 10.0
# A slow reader reads so many bytes at a time, with so many seconds between two reads.
_SLOW_READ_BYTES: Final = 64 * 1024
_SLOW_READ_SECONDS: Final = 0.1
# Bytes that the kernel receives for a slow reader.
_SLOW_SOCKET_BYTES: Final = 8 * 1024


class Client:
    """Keep-alive connections to edges, and a gRPC channel to each service.

    Args:
        edges: The base URL of each edge, by its name.
        services: HOST:PORT of each service, by its name.

    Attributes:
        refused: Number of refused connections.
    """

    def __init__(self, edges: Mapping[str, str], services: Mapping[str, str]) -> None:
        self._edges = edges
        self._services = services
        self.refused = 0
        self._ends = AsyncExitStack()
        self._http: aiohttp.ClientSession
        self._slow: aiohttp.ClientSession
        self._stubs: dict[str, Any] = {}

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(limit=0)
        slow = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_slow_socket)
        self._http = await self._ends.enter_async_context(
            aiohttp.ClientSession(connector=connector)
        )
        self._slow = await self._ends.enter_async_context(
            aiohttp.ClientSession(connector=slow, read_bufsize=_SLOW_READ_BYTES)
        )
        # A channel waits for up to two minutes before it connects to a service again.
        options = (
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 500),
        )
        for name, address in self._services.items():
            channel = grpc.aio.insecure_channel(address, options)
            self._ends.push_async_callback(channel.close)
            self._stubs[name] = InferenceServiceStub(channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.aclose()

    async def send(
        self, plan: Plan, target: str, key: str, *, cancel_after: float = 0.0, slow: bool = False
    ) -> Answer:
        """Sends a request and reads its answer to the end.

        Args:
            plan: The request.
            target: The name of an edge; of a service for a direct call.
            key: API key.
            cancel_after: Seconds after which the client leaves; 0 for never.
            slow: Whether the client reads slowly.
        """
        answer = Answer(began=time.monotonic())
        work = self._call if plan.path == GRPC else self._request
        task = asyncio.create_task(work(plan, target, key, answer, slow))
        try:
            done, _ = await asyncio.wait({task}, timeout=cancel_after or REQUEST_SECONDS)
            if cancel_after and not done:
                answer.cancelled = True
            elif not done:
                answer.cut = f"no end within {REQUEST_SECONDS:g} s"
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            raise error
        answer.ended = time.monotonic()
        return answer

    async def _request(self, plan: Plan, target: str, key: str, answer: Answer, slow: bool) -> None:
        headers = {"authorization": f"Bearer {key}", "x-request-id": plan.request_id}
        data = None
        if plan.body is not None:
            headers["content-type"] = "application/json"
            data = json.dumps(plan.body).encode()
        url = self._edges[target] + plan.path
        session = self._slow if slow else self._http
        method = "GET" if data is None else "POST"
        limit = aiohttp.ClientTimeout(total=None)
        try:
            async with await self._connected(
                answer,
                lambda: session.request(method, url, data=data, headers=headers, timeout=limit),
            ) as response:
                answer.status = response.status
                answer.events = response.content_type == "text/event-stream"
                answer.request_id = response.headers.get("x-request-id", "none")
                while chunk := await self._read(response.content, slow):
                    answer.first = answer.first or time.monotonic()
                    answer.body += chunk
                answer.complete = True
        except (aiohttp.ClientError, OSError) as error:
            answer.cut = f"{type(error).__name__}: {error}"[:100]

    async def _connected(
        self, answer: Answer, request: Callable[[], Awaitable[aiohttp.ClientResponse]]
    ) -> aiohttp.ClientResponse:
        """Returns the response; while an edge starts again, connects again and again.

        A refused connection has carried no request, so the request is sent once.
        """
        limit = time.monotonic() + _CONNECT_SECONDS
        while True:
            answer.began = time.monotonic()
            try:
                return await request()
            except aiohttp.ClientConnectorError:
                if time.monotonic() > limit:
                    raise
                self.refused += 1
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read(self, content: aiohttp.StreamReader, slow: bool) -> bytes:
        if not slow:
            return await content.readany()
        await asyncio.sleep(_SLOW_READ_SECONDS)
        return await content.read(_SLOW_READ_BYTES)

    async def _call(self, plan: Plan, target: str, key: str, answer: Answer, _slow: bool) -> None:
        metadata = (("authorization", f"Bearer {key}"), ("x-request-id", plan.request_id))
        call = self._stubs[target].Generate(_message(plan), metadata=metadata)
        try:
            async for message in call:
                answer.first = answer.first or time.monotonic()
                answer.messages.append(message)
            answer.complete = True
        except grpc.aio.AioRpcError as error:
            answer.complete = True
            answer.code = error.code().name
        finally:
            call.cancel()
        answer.status = 200


def _message(plan: Plan) -> GenerateRequest:
    body = plan.body or {}
    request = GenerateRequest(request_id=plan.request_id, model=body["model"])
    for message in body["messages"]:
        added = request.chat.messages.add(role=_ROLES[message["role"]])
        added.parts.add(text=message["content"])
    request.stopping.max_tokens = body["max_tokens"]
    return request


def _slow_socket(address: Iterable[Any]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_SOCKET_BYTES)
    return made
