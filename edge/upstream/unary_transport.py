"""The `generate` transport: one public Generate call a generation."""

from __future__ import annotations

import asyncio
import logging

import grpc

from edge.upstream.transport import (
    OK,
    Call,
    CallOptions,
    Receiver,
    Transport,
    end_of,
    status_of,
    transport_status,
)
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub

log = logging.getLogger(__name__)


class GenerateTransport(Transport):
    """Works through any proxy that speaks gRPC.

    Args:
        stub: Of the service's channel.
        credentials: Metadata that authorises the edge.
    """

    def __init__(
        self, stub: InferenceServiceStub, credentials: tuple[tuple[str, str], ...]
    ) -> None:
        self._stub = stub
        self._credentials = credentials
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(self, request: GenerateRequest, receiver: Receiver, options: CallOptions) -> Call:
        """Starts the call in a task of its own."""
        task = asyncio.create_task(self._run(request, receiver, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _TaskCall(task)

    async def close(self) -> None:
        """Ends what runs."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(
        self, request: GenerateRequest, receiver: Receiver, options: CallOptions
    ) -> None:
        metadata = (*self._credentials, *options.rpc_metadata())
        call = self._stub.Generate(request, timeout=options.timeout_seconds, metadata=metadata)
        status = OK
        try:
            while isinstance(response := await call.read(), GenerateResponse):
                text = _plain_text(response)
                if text is None:
                    receiver.on_part(response)
                else:
                    receiver.on_text(text)
            if await call.code() is not grpc.StatusCode.OK:
                status = await end_of(call)
        except grpc.aio.AioRpcError as error:
            status = status_of(error)
        except asyncio.CancelledError:
            if not self._closed:  # its receiver wants to hear no more
                raise
            status = transport_status(grpc.StatusCode.UNAVAILABLE, "The replica is given up.")
        except Exception:
            log.exception("a receiver failed; its call is cancelled")
            status = transport_status(grpc.StatusCode.INTERNAL, "A receiver failed.")
        finally:
            call.cancel()
        receiver.on_end(status)


class _TaskCall(Call):
    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()


def _plain_text(response: GenerateResponse) -> str | None:
    """The text of a response that holds nothing but text of choice 0."""
    if len(response.deltas) != 1 or response.finishes:
        return None
    delta = response.deltas[0]
    if len(response.ListFields()) == 1 and {f.name for f, _ in delta.ListFields()} <= _PLAIN:
        return delta.text if delta.index == 0 else None
    return None


_PLAIN = frozenset({"index", "text"})
