"""The status of a call that fails outside the service's own error handling.

By default, grpc ends a call whose bytes are not a message, or whose handler raised, with UNKNOWN
and the exception's class and text. The text of an exception may hold prompts, so it must not reach
a caller: here such calls end with an error of the contract and its usual details.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from inference.auth import Handler
from inference.call_context import ServicerContext, abort
from inference.errors import InferenceError, internal_error

log = logging.getLogger(__name__)

# Prefix of the methods that are guarded; health and reflection keep grpc's own errors.
_GUARDED_PREFIX: Final = "/isthmus."
# Stands for a request whose bytes are not a message.
_MALFORMED: Final = object()


class FaultGuard(grpc.aio.ServerInterceptor):
    """Ends failed calls of the project's methods with an error of the contract."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the handler, wrapped if it belongs to the project's services."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(_GUARDED_PREFIX):
            return handler  # type: ignore[no-any-return]
        guarded: Handler
        if handler.request_streaming:
            # The session reads its messages itself; a malformed one ends it.
            guarded = grpc.stream_stream_rpc_method_handler(
                handler.stream_stream,
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        elif handler.response_streaming:
            guarded = grpc.unary_stream_rpc_method_handler(
                _guarded(handler.unary_stream),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        else:
            guarded = grpc.unary_unary_rpc_method_handler(
                _guarded(handler.unary_unary),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        return guarded


def _lenient(deserialize: Callable[[bytes], object] | None) -> Callable[[bytes], object] | None:
    if deserialize is None:
        return None

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return _MALFORMED

    return read


def _guarded(
    method: Callable[[Any, ServicerContext], Awaitable[object]],
) -> Callable[[Any, ServicerContext], Awaitable[object]]:
    async def call(request: object, context: ServicerContext) -> object:
        if request is _MALFORMED:
            await abort(
                context,
                InferenceError("invalid_request_error", "The request is not a message."),
            )
        try:
            return await method(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("a call failed")
            await abort(context, internal_error())

    return call
