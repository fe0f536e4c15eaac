"""Who may call what over gRPC: the same keys as over REST, plus the edge's own credential.

With keys configured everything but health needs one. The session, which speaks for other
callers, takes only a credential of scope `edge`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from inference.call_context import KEY_ID, abort
from inference.errors import InferenceError
from keys import KeyStore

_HEALTH = "/grpc.health.v1.Health/"
_SESSION = "/isthmus.session."

# Quoted: at run time grpc's classes take no parameters.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a fitting key before their handler sees them."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Lets the call through, or answers it with the reason why not."""
        refusal = self._refusal(handler_call_details)
        if refusal is None:
            return await continuation(handler_call_details)

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await abort(context, refusal)

        # On the wire this shape fits every method: nothing is read, a status is sent.
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
            return InferenceError("invalid_api_key", "Incorrect API key provided.")
        needed = {"edge"} if method.startswith(_SESSION) else {"api", "edge"}
        if not needed & set(principal.scopes):
            return InferenceError(
                "insufficient_scope", "This API key may not be used for this method."
            )
        # Each call has a context of its own, and its handler runs in it.
        KEY_ID.set(None if "edge" in principal.scopes else principal.id)
        return None
