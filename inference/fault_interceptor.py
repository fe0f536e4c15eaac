"""What a caller sees when a call fails outside our own error handling.

grpc's own answer to bytes that are no message, and to an exception that nobody caught, is
UNKNOWN with the exception's class and text.
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

_OURS: Final = "/isthmus."
_MALFORMED: Final = object()


class FaultGuard(grpc.aio.ServerInterceptor):
    """Gives every failure of our own methods a status with our details."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(_OURS):
            return handler  # type: ignore[no-any-return]
        guarded: Handler
        if handler.request_streaming:
            # Reads its requests itself, and takes what is no request for the end of them.
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
    async def answer(request: object, context: ServicerContext) -> object:
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

    return answer
