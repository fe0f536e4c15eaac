"""What a gRPC call tells beside its request: caller, id, deadline, priority; and how it ends."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from inference.errors import InferenceError, to_rpc_status
from inference.generation import CallContext

# No call outlives this, whatever its caller says.
MAX_CALL_SECONDS: Final = 3600.0
# Set where the call's key stands for its owner only. An edge, and whoever calls a service that is
# open, may say in metadata for whom it calls; nobody else is believed.
KEY_ID: Final[ContextVar[str | None]] = ContextVar("key_id", default=None)
_PRINCIPAL: Final = "x-isthmus-principal"
_REQUEST_ID: Final = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
_PRIORITY: Final = re.compile(r"-?\d{1,10}", re.ASCII)

# Quoted: at run time grpc's classes take no parameters.
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def call_context(
    metadata: Mapping[str, str],
    timeout_seconds: float | None,
    request_id: str = "",
    principal: str = "",
) -> CallContext:
    """Reads what metadata says; values that are not well-formed count as absent."""
    request_id = request_id or metadata.get("x-request-id", "")
    priority = metadata.get("x-priority")
    return CallContext(
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
        timeout_seconds=min(timeout_seconds or MAX_CALL_SECONDS, MAX_CALL_SECONDS),
        priority=int(priority) if priority and _PRIORITY.fullmatch(priority) else 0,
        principal=principal,
    )


def rpc_context(context: ServicerContext, request_id: str) -> CallContext:
    """The same for a plain gRPC call."""
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    key_id = KEY_ID.get()
    principal = metadata.get(_PRINCIPAL, "") if key_id is None else key_id
    return call_context(metadata, context.time_remaining(), request_id, principal)


async def abort(context: ServicerContext, error: InferenceError) -> NoReturn:
    """Ends a call with a failure and its details."""
    await abort_with_status(context, to_rpc_status(error))


async def abort_with_status(context: ServicerContext, status: status_pb2.Status) -> NoReturn:
    """Ends a call with a google.rpc.Status."""
    rendered = rpc_status.to_status(status)
    await context.abort(rendered.code, rendered.details, rendered.trailing_metadata)
