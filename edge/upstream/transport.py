"""The interface of a call to an inference service, the same for both transports.

Two transports carry generations: `session` puts all generations of this process on one stream,
`unary` makes one RPC for each. Embeddings, images and counts of tokens always use an RPC.
Transports push: they call a receiver from the event loop, and nothing is awaited for a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status
from msgspec import Struct

from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse

# Seconds without any message after which a service counts as stuck. Services send an empty message
# every 5 s while calls are open.
SILENCE_SECONDS: Final = 15.0

UpstreamRequest = GenerateRequest | EmbedRequest | GenerateImageRequest | TokenizeRequest
UpstreamPart = GenerateResponse | EmbedResponse | GenerateImageResponse | TokenizeResponse


class Output(Protocol):
    """Receives the output of a call, in the event loop; neither method blocks."""

    def on_text(self, text: str) -> None:
        """Receives plain text of choice 0."""

    def on_part(self, part: Any) -> None:
        """Receives any other message: an UpstreamPart of the request's kind."""


class Receiver(Output, Protocol):
    """Receives the output of a call and its end."""

    def on_end(self, status: status_pb2.Status) -> None:
        """Receives the end; nothing follows. The code is 0 if the call succeeded."""


class Ended(Struct, frozen=True, gc=False):
    """How a call ended.

    Attributes:
        status: The code is 0 if the call succeeded.
        sent: False if the request certainly did not reach the service.
        received: Whether any output arrived.
        silent: Whether the edge ended it because nothing arrived for SILENCE_SECONDS.
    """

    status: status_pb2.Status
    sent: bool = True
    received: bool = False
    silent: bool = False


OnEnded = Callable[[Ended], None]


class CallOptions(Struct, frozen=True, gc=False):
    """Timeout, metadata and principal of a call.

    Attributes:
        timeout_seconds: Seconds until the call must have ended.
        metadata: Entries of the contract's allow-list, names in lower case.
        principal: Id of the client's API key; empty without keys.
        affinity: Returns what the client says belongs together, "" for nothing (affinity.py); it is
            called only if there are several replicas.
    """

    timeout_seconds: float
    metadata: dict[str, str]
    principal: str
    affinity: Callable[[], str] | None = None

    def rpc_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of an RPC, with the principal as x-isthmus-principal."""
        principal = (("x-isthmus-principal", self.principal),) if self.principal else ()
        return (*self.metadata.items(), *principal)


class Call(Protocol):
    """A call in flight."""

    def cancel(self) -> None:
        """Stops the engine's work. The receiver gets nothing afterwards. May be called twice."""


OK: Final = status_pb2.Status()


def transport_status(code: grpc.StatusCode, message: str) -> status_pb2.Status:
    """The status of a failure that the edge detected; only the service's statuses have details."""
    return status_pb2.Status(code=code.value[0], message=message)


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status that a failed call carries, or one without details."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:  # the details contradict the status, so the service did not send it
        status = None
    return status or transport_status(error.code(), error.details() or "")


async def end_of(
    call: grpc.aio.UnaryStreamCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any],
) -> status_pb2.Status:
    """The final status of a call that was read to its end."""
    return status_of(await failure_of(call))


async def failure_of(
    call: grpc.aio.UnaryStreamCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any],
) -> grpc.aio.AioRpcError:
    """The final status of a call, as an exception."""
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        await call.details(),
    )
