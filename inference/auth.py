"""Authorization of gRPC calls: the same keys as over REST, and the edge's own credential.

If keys are configured, all methods but health need one. The session carries requests of other
callers, so it needs a credential of scope `edge`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from contract.refusals import INVALID_API_KEY
from inference.call_context import KEY_ID, abort
from inference.errors import InferenceError
from keys import KeyStore

_HEALTH = "/grpc.health.v1.Health/"
_SESSION = "/isthmus.session."

# A string, because grpc's classes are not generic at run time.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a key of the right scope before their handler runs."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

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
            await abort(context, refusal)

        # A handler of this shape fits every method: it reads no message and sends a status.
        return grpc.stream_stream_rpc_method_handler(refuse)

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
        # Each call has its own context (contextvars), in which its handler runs.
        KEY_ID.set(None if "edge" in principal.scopes else principal.id)
        return None
