"""One RPC of the public service for each call: Generate, Embed, GenerateImage and Tokenize.

All but generations always use it, on a connection of their own (replica.py). Generations use it if
`transport = "generate"` is configured or a service has no session RPC; it works through any gRPC
proxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import grpc

from edge.upstream.transport import (
    OK,
    SILENCE_SECONDS,
    Call,
    CallOptions,
    Ended,
    OnEnded,
    Output,
    UpstreamPart,
    UpstreamRequest,
    failure_of,
    status_of,
    transport_status,
)
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.tokenize_pb2 import TokenizeRequest

log = logging.getLogger(__name__)

# Seconds that a connection may take to be established before the call counts as not sent.
CONNECT_SECONDS: Final = 5.0


class UnaryTransport:
    """Calls the public service.

    Args:
        channel: Connection to the service.
        credentials: Metadata that authorises the edge.
    """

    def __init__(self, channel: grpc.aio.Channel, credentials: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._stub = InferenceServiceStub(channel)
        self._credentials = credentials
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(
        self, request: UpstreamRequest, output: Output, on_ended: OnEnded, options: CallOptions
    ) -> Call:
        """Starts the call in a task of its own."""
        task = asyncio.create_task(self._run(request, output, on_ended, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _TaskCall(task)

    async def close(self) -> None:
        """Ends every call."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(
        self, request: UpstreamRequest, output: Output, on_ended: OnEnded, options: CallOptions
    ) -> None:
        status, sent, received, silent = OK, False, False, False
        deadline = time.monotonic() + options.timeout_seconds
        try:
            await self._connect(min(CONNECT_SECONDS, options.timeout_seconds))
            sent = True
            timeout = max(0.0, deadline - time.monotonic())
            async with aclosing(self._parts(request, options, timeout)) as parts:
                async for part in parts:
                    received = True
                    text = _plain_text(part) if isinstance(part, GenerateResponse) else None
                    if text is None:
                        output.on_part(part)
                    else:
                        output.on_text(text)
        except grpc.aio.AioRpcError as error:
            status = status_of(error)
        except TimeoutError:
            silent = sent
            late = time.monotonic() >= deadline
            status = transport_status(
                grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE,
                "The service was silent.",
            )
        except asyncio.CancelledError:
            if not self._closed:  # The receiver cancelled the call.
                raise
            status = transport_status(grpc.StatusCode.UNAVAILABLE, "The replica was removed.")
        except Exception:
            log.exception("a receiver failed; its call is cancelled")
            status = transport_status(grpc.StatusCode.INTERNAL, "A receiver failed.")
        on_ended(Ended(status, sent, received, silent))

    async def _connect(self, seconds: float) -> None:
        """Waits for the connection, so that a call on a refused one counts as not sent.

        Raises:
            AioRpcError: UNAVAILABLE, the connection is refused.
            TimeoutError: It took longer.
        """
        state = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return
        async with asyncio.timeout(seconds):
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise grpc.aio.AioRpcError(
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.aio.Metadata(),
                        grpc.aio.Metadata(),
                        "The connection was refused.",
                    )
                await self._channel.wait_for_state_change(state)
                state = self._channel.get_state(try_to_connect=True)

    async def _parts(
        self, request: UpstreamRequest, options: CallOptions, timeout_seconds: float
    ) -> AsyncGenerator[UpstreamPart, None]:
        """The messages of the service; skips empty ones, which only show that it is alive.

        Raises:
            AioRpcError: The call failed.
            TimeoutError: An image call was silent for SILENCE_SECONDS.
        """
        arguments: dict[str, Any] = {
            "timeout": timeout_seconds,
            "metadata": (*self._credentials, *options.rpc_metadata()),
        }
        if isinstance(request, EmbedRequest | TokenizeRequest):
            whole = self._stub.Embed if isinstance(request, EmbedRequest) else self._stub.Tokenize
            yield await whole(request, **arguments)
            return
        # Generate sends no empty messages, so only the deadline bounds its silence.
        bound = None if isinstance(request, GenerateRequest) else SILENCE_SECONDS
        rpc = self._stub.Generate if bound is None else self._stub.GenerateImage
        call: grpc.aio.UnaryStreamCall[Any, Any] = rpc(request, **arguments)
        try:
            while True:
                async with asyncio.timeout(bound):
                    part = await call.read()
                if not isinstance(part, GenerateResponse | GenerateImageResponse):
                    break  # grpc.aio.EOF
                if part.ListFields():
                    yield part
            if await call.code() is not grpc.StatusCode.OK:
                raise await failure_of(call)
        finally:
            call.cancel()


class _TaskCall(Call):
    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()


_PLAIN: Final = frozenset({"index", "text"})


def _plain_text(response: GenerateResponse) -> str | None:
    """The text of a response that holds only text of choice 0; else None."""
    if len(response.deltas) != 1 or response.finishes:
        return None
    delta = response.deltas[0]
    if len(response.ListFields()) == 1 and {f.name for f, _ in delta.ListFields()} <= _PLAIN:
        return delta.text if delta.index == 0 else None
    return None
