"""Code for every RPC: reads its metadata, checks its key, and ends it with an error.

Keys. If keys are configured, all methods except health need one, as over REST. The session
carries requests of other callers, so it needs a key of scope `edge`. Many wrong keys from one
address are refused for a while (keys/wrong_keys.py); right keys pass meanwhile.

Errors. By default grpc ends a call whose bytes are not a message, or whose handler raised, with
UNKNOWN and the exception's class and text. That text may hold a prompt, so FaultGuard ends such
calls with an error of the contract.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Final, NoReturn, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from msgspec import Struct, field

from contract.failures import INVALID_API_KEY, too_many_wrong_keys
from contract.memory import Holding, MemoryBudget, MemorySpentError, without_frames
from contract.tracing import trace_headers
from inference.errors import InferenceError, internal_error, overloaded, to_rpc_status
from inference.observer import Observer
from keys import KeyStore, WrongKeys

log = logging.getLogger(__name__)

# Maximum seconds of a call; a later deadline of its caller has no effect.
MAX_CALL_SECONDS: Final = 3600.0
# Id of the caller's key. None for the edge (scope `edge`) and when no keys are configured: only
# then is x-isthmus-principal in the metadata trusted.
KEY_ID: Final[ContextVar[str | None]] = ContextVar("key_id", default=None)
_PRINCIPAL: Final = "x-isthmus-principal"
_REQUEST_ID: Final = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_PRIORITY: Final = re.compile(r"-?\d{1,10}", re.ASCII)

# Prefixes of the methods that FaultGuard wraps; health and reflection keep grpc's own errors.
_GUARDED_PREFIXES: Final = ("/isthmus.", "/vllm.grpc.engine.")
# Replaces a request whose bytes are not a message.
_MALFORMED: Final = object()
# Replaces a request for which there is no memory.
_TOO_LARGE: Final = object()
_HEALTH: Final = "/grpc.health.v1.Health/"
_SESSION: Final = "/isthmus.session."

# Quoted, because grpc's classes are not generic at run time.
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallContext(Struct, frozen=True, gc=False):
    """Id, timeout, priority and principal of a call.

    Attributes:
        request_id: For logs; the caller's or a new one, at most 128 printable characters.
        timeout_seconds: Seconds until the call must have ended; None for no limit.
        priority: Lower runs sooner.
        principal: Id of the key that is charged; empty for none.
        trace_headers: Of the trace that it belongs to; empty for none.
    """

    request_id: str
    timeout_seconds: float | None
    priority: int = 0
    principal: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)


def call_context(
    metadata: Mapping[str, str],
    timeout_seconds: float | None,
    request_id: str = "",
    principal: str = "",
) -> CallContext:
    """Reads metadata; malformed values count as absent."""
    request_id = request_id or metadata.get("x-request-id", "")
    priority = metadata.get("x-priority")
    return CallContext(
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
        timeout_seconds=min(timeout_seconds or MAX_CALL_SECONDS, MAX_CALL_SECONDS),
        priority=int(priority) if priority and _PRIORITY.fullmatch(priority) else 0,
        principal=principal,
        trace_headers=trace_headers(metadata),
    )


def rpc_context(context: ServicerContext, request_id: str) -> CallContext:
    """Reads the metadata of an RPC of the public service."""
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    key_id = KEY_ID.get()
    principal = metadata.get(_PRINCIPAL, "") if key_id is None else key_id
    return call_context(metadata, context.time_remaining(), request_id, principal)


def _request_id(context: ServicerContext) -> str:
    """The id in the metadata of a call whose request is not read; a new one without one."""
    return rpc_context(context, "").request_id


async def abort(context: ServicerContext, error: InferenceError) -> NoReturn:
    """Ends an RPC with an error and its details."""
    rendered = rpc_status.to_status(to_rpc_status(error))
    await context.abort(rendered.code, rendered.details, rendered.trailing_metadata)


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a key of the right scope before their handler runs."""

    def __init__(self, keys: KeyStore, observer: Observer | None = None) -> None:
        self._keys = keys
        self._observer = observer
        self._wrong_keys = WrongKeys()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler, or one that ends the call with the refusal."""
        refusal = self._refusal(handler_call_details)
        if refusal is None:
            return await continuation(handler_call_details)

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            error = self._throttled(refusal, context.peer())
            if self._observer is not None:
                self._observer.refused(
                    _request_id(context), str(handler_call_details.method), error
                )
            await abort(context, error)

        # A stream-stream handler fits every method, because it reads no message.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _throttled(self, refusal: InferenceError, peer: str) -> InferenceError:
        """The refusal, or another one if many wrong keys came from this peer's address."""
        if refusal.reason != "invalid_api_key":
            return refusal
        wait = self._wrong_keys.note(address_of(peer))
        if not wait:
            return refusal
        milliseconds = ceil(wait * 1000)
        return InferenceError(
            "rate_limit_exceeded",
            too_many_wrong_keys(milliseconds),
            retry_after_ms=milliseconds,
        )

    def _refusal(self, details: grpc.HandlerCallDetails) -> InferenceError | None:
        method = str(details.method)
        if method.startswith(_HEALTH):
            return None
        authorization = dict(details.invocation_metadata).get("authorization", "")
        scheme, _, key = str(authorization).partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return InferenceError(
                "missing_api_key",
                "You didn't provide an API key. You need to provide your API key in an "
                "authorization entry using Bearer auth (i.e. authorization: Bearer YOUR_KEY).",
            )
        principal = self._keys.check(key.strip())
        if principal is None:
            return InferenceError("invalid_api_key", INVALID_API_KEY)
        needed = {"edge"} if method.startswith(_SESSION) else {"api", "edge"}
        if not needed & set(principal.scopes):
            return InferenceError(
                "insufficient_scope", "This API key may not be used for this method."
            )
        # The handler runs in the same context (contextvars), which belongs to this call.
        KEY_ID.set(None if "edge" in principal.scopes else principal.id)
        return None


def address_of(peer: str) -> str:
    """The IP address in what gRPC calls a peer: "ipv4:ADDRESS:PORT", "ipv6:%5BADDRESS%5D:PORT"."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else peer


class FaultGuard(grpc.aio.ServerInterceptor):
    """Ends failed calls of the project's methods with an error of the contract.

    Args:
        memory: A request that it has no room for is refused before it is decoded.
        observer: Is told of the calls that no handler gets.
    """

    def __init__(self, memory: MemoryBudget, observer: Observer | None = None) -> None:
        self._memory = memory
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the handler, wrapped if it belongs to the project's services."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(_GUARDED_PREFIXES):
            return handler  # type: ignore[no-any-return]
        guarded: Handler
        method = str(handler_call_details.method)
        wrap = partial(_guarded, method=method, observer=self._observer)
        if handler.request_streaming:
            # The session reads its messages itself; a malformed one ends it.
            guarded = grpc.stream_stream_rpc_method_handler(
                handler.stream_stream,
                _plain(handler.request_deserializer),
                handler.response_serializer,
            )
        elif handler.response_streaming:
            guarded = grpc.unary_stream_rpc_method_handler(
                wrap(handler.unary_stream),
                _lenient(handler.request_deserializer, self._memory),
                handler.response_serializer,
            )
        elif method.endswith(("/Embed", "/Tokenize")):
            # They write their response themselves, which bounds the time of the write.
            guarded = grpc.unary_stream_rpc_method_handler(
                wrap(handler.unary_unary),
                _lenient(handler.request_deserializer, self._memory),
                handler.response_serializer,
            )
        else:
            guarded = grpc.unary_unary_rpc_method_handler(
                wrap(handler.unary_unary),
                _lenient(handler.request_deserializer, self._memory),
                handler.response_serializer,
            )
        return guarded


def _plain(deserialize: Callable[[bytes], object] | None) -> Callable[[bytes], object] | None:
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return _MALFORMED

    return read


@dataclass(frozen=True, slots=True)
class _Received:
    """A request, and its bytes in the memory budget: gRPC may receive many before one is served."""

    request: object
    holding: Holding


def _lenient(
    deserialize: Callable[[bytes], object] | None, memory: MemoryBudget
) -> Callable[[bytes], object] | None:
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        holding = Holding(memory)
        try:
            holding.take(len(data))
            return _Received(deserialize(data), holding)
        except MemorySpentError:
            return _Received(_TOO_LARGE, holding)
        except DecodeError:
            return _Received(_MALFORMED, holding)

    return read


def _guarded(
    handler: Callable[[Any, ServicerContext], Awaitable[object]],
    *,
    method: str,
    observer: Observer | None,
) -> Callable[[Any, ServicerContext], Awaitable[object]]:
    async def call(received: _Received, context: ServicerContext) -> object:
        try:
            return await answer(received.request, context)
        finally:
            received.holding.close()

    async def answer(request: object, context: ServicerContext) -> object:
        refusal = None
        if request is _MALFORMED:
            refusal = InferenceError("invalid_request_error", "The request is not a message.")
        elif request is _TOO_LARGE:
            refusal = overloaded(1000)
        if refusal is not None:
            if observer is not None:
                observer.refused(_request_id(context), method, refusal)
            await abort(context, refusal)
        try:
            return await handler(request, context)
        except Exception as error:
            if context.done():
                # gRPC keeps and raises the AbortError. Any other means that the caller left before
                # it had read its status.
                without_frames(error)
                return None
            log.exception("a call failed")
            await abort(context, internal_error())

    return call
