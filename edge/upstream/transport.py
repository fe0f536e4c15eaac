"""One upstream interface, two transports: what a generation in flight looks like to its caller.

`session` carries all generations of this process over one stream; `generate` makes one call of
the public RPC for each. Both push: nothing is awaited per token.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, cast

import grpc
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from msgspec import Struct

from edge.openai.errors.rpc_status import DOMAIN
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse

# Services give a sign of life every 5 s while calls are open: this much silence means that one is
# wedged.
SILENCE_SECONDS: Final = 15.0


class Receiver(Protocol):
    """Who hears of a generation. Methods are called from the event loop and never wait."""

    def on_text(self, text: str) -> None:
        """More plain text of choice 0."""

    def on_part(self, part: GenerateResponse) -> None:
        """Anything else."""

    def on_end(self, status: status_pb2.Status) -> None:
        """The last call: code 0, or how the generation failed."""


class CallOptions(Struct, frozen=True, gc=False):
    """What surrounds a request.

    Attributes:
        timeout_seconds: Until the generation must have ended.
        metadata: Entries of the contract's allow-list, lower case.
        principal: Id of the API key that asked; empty without keys.
    """

    timeout_seconds: float
    metadata: dict[str, str]
    principal: str

    def rpc_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of a plain call, which tells there for whom the edge calls."""
        principal = (("x-isthmus-principal", self.principal),) if self.principal else ()
        return (*self.metadata.items(), *principal)


class Call(Protocol):
    """A generation in flight."""

    def cancel(self) -> None:
        """Stops the engine's work; nothing is heard of the call afterwards. May be repeated."""


class Transport(Protocol):
    """A way to an inference service."""

    def open(self, request: GenerateRequest, receiver: Receiver, options: CallOptions) -> Call:
        """Starts a generation; every failure is told through the receiver."""
        ...

    async def close(self) -> None:
        """Ends the transport and every call on it."""
        ...


OK: Final = status_pb2.Status()


def transport_status(code: grpc.StatusCode, message: str) -> status_pb2.Status:
    """A failure that no service told us of; it carries no details on purpose."""
    return status_pb2.Status(code=code.value[0], message=message)


def turned_away(message: str) -> status_pb2.Status:
    """A call that a service certainly did not take, as the service itself would say it."""
    status = transport_status(grpc.StatusCode.UNAVAILABLE, message)
    metadata = {"type": "server_error"}
    status.details.add().Pack(ErrorInfo(domain=DOMAIN, reason="draining", metadata=metadata))
    return status


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status that a failed call carries, or one without details."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:  # the details contradict the status: not ours
        status = None
    return status or transport_status(error.code(), error.details() or "")


async def end_of(
    call: grpc.aio.UnaryStreamCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any],
) -> status_pb2.Status:
    """The status with which a call that was read to its end has ended."""
    return status_of(
        grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
    )
