"""What accompanies a request in gRPC metadata, and how a call ends with an error."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from grpc_status import rpc_status

from inference.errors import InferenceError, to_rpc_status

# Seconds that a call may take at most, whatever deadline its caller sets.
MAX_CALL_SECONDS: Final = 3600.0
# Id of the caller's key. None for the edge (scope `edge`) and when no keys are configured: only
# then is x-isthmus-principal in the metadata trusted.
KEY_ID: Final[ContextVar[str | None]] = ContextVar("key_id", default=None)
_PRINCIPAL: Final = "x-isthmus-principal"
_REQUEST_ID: Final = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_PRIORITY: Final = re.compile(r"-?\d{1,10}", re.ASCII)

# Quoted: at run time grpc's classes take no parameters.
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class CallContext:
    """What accompanies a request.

    Attributes:
        request_id: Correlates logs; the caller's or ours, at most 128 printable characters.
        timeout_seconds: Seconds until the call must have ended; None for no limit.
        priority: Lower runs sooner.
        principal: Id of the key that is charged; empty for none.
    """

    request_id: str
    timeout_seconds: float | None
    priority: int = 0
    principal: str = ""


def call_context(
    metadata: Mapping[str, str],
    timeout_seconds: float | None,
    request_id: str = "",
    principal: str = "",
) -> CallContext:
    """Reads metadata; values that are not well-formed count as absent."""
    request_id = request_id or metadata.get("x-request-id", "")
    priority = metadata.get("x-priority")
    return CallContext(
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
        timeout_seconds=min(timeout_seconds or MAX_CALL_SECONDS, MAX_CALL_SECONDS),
        priority=int(priority) if priority and _PRIORITY.fullmatch(priority) else 0,
        principal=principal,
    )


def rpc_context(context: ServicerContext, request_id: str) -> CallContext:
    """Reads the metadata of an RPC of the public service."""
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    key_id = KEY_ID.get()
    principal = metadata.get(_PRINCIPAL, "") if key_id is None else key_id
    return call_context(metadata, context.time_remaining(), request_id, principal)


async def abort(context: ServicerContext, error: InferenceError) -> NoReturn:
    """Ends an RPC with an error and its details."""
    rendered = rpc_status.to_status(to_rpc_status(error))
    await context.abort(rendered.code, rendered.details, rendered.trailing_metadata)
