"""Writes the access log and the trace span of each finished call."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from contract.access_log import DONE, AccessLog
from contract.request_metrics import CANCELLED, finish_names, operation
from contract.tracing import Tracing, request_attributes
from inference.errors import InferenceError, status_name
from isthmus.v1.generate_pb2 import GenerateRequest

if TYPE_CHECKING:
    from inference.metrics import CallRecord
    from inference.rpc import CallContext

_METHODS: Final = frozenset(
    {"Generate", "Embed", "GenerateImage", "Tokenize", "ListModels", "Session"}
)
# Statuses that are the fault of the service, by OpenTelemetry's conventions for gRPC.
_FAULTS: Final = frozenset({"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})


class Observer:
    """Writes a line for each finished call, and traces it.

    Args:
        access_log: None if it is off.
        tracing: None if it is off.
    """

    def __init__(self, access_log: AccessLog | None, tracing: Tracing | None) -> None:
        self._access_log = access_log
        self._tracing = tracing

    def begin(self, record: CallRecord, context: CallContext) -> None:
        """Called before anything else is done for a call."""
        if self._tracing is not None:
            record.span = self._tracing.start(operation(record.request), context.trace_headers)
            record.trace_headers = self._tracing.headers(record.span)

    def ended(self, record: CallRecord, context: CallContext) -> None:
        """Called when a call has ended, whatever became of it."""
        if self._access_log is not None:
            self._write(self._access_log, record, context)
        if self._tracing is None or record.span is None:
            return
        request, emitter, name = record.request, record.emitter, operation(record.request)
        first = emitter.first_output if emitter is not None else None
        permitted, arrived, model = record.permitted, record.arrived, record.model
        status = status_name(record.error)
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.response.status_code": status,
            "isthmus.request_id": context.request_id,
            "isthmus.key_id": context.principal,
            "isthmus.queue_seconds": None if permitted is None else permitted - arrived,
            "gen_ai.operation.name": name,
        }
        if model:
            name = f"{name} {request.model or model}"
            attributes |= request_attributes(
                request,
                model,
                emitter.spent if emitter is not None else None,
                None if first is None else first - arrived,
                emitter.finishes if emitter is not None else (),
            )
        self._tracing.end(record.span, name, attributes, record.error, failed=status in _FAULTS)

    async def close(self) -> None:
        """Sends the spans that are left."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _write(self, access_log: AccessLog, record: CallRecord, context: CallContext) -> None:
        emitter, arrived, error = record.emitter, record.arrived, record.error
        spent = emitter.spent if emitter is not None else None
        first = emitter.first_output if emitter is not None else None
        permitted = record.permitted
        output_tokens = None if spent is None else spent.output_tokens
        if spent is None and emitter is not None and isinstance(record.request, GenerateRequest):
            # What the key is charged for a text that ended early.
            output_tokens = emitter.charge.used_tokens - record.prompt_tokens
        finishes = emitter.finishes if emitter is not None else ()
        access_log.write(
            request_id=context.request_id,
            operation=operation(record.request),
            status=status_name(error),
            key=context.principal,
            model=record.model,
            input_tokens=spent.input_tokens if spent is not None else record.prompt_tokens or None,
            output_tokens=output_tokens,
            queue_ms=None if permitted is None else (permitted - arrived) * 1000,
            first_output_ms=None if first is None else (first - arrived) * 1000,
            total_ms=(time.monotonic() - arrived) * 1000,
            end=error or ",".join(finish_names(finishes)) or DONE,
            stage=record.stage if error == CANCELLED else None,
        )

    def refused(self, request_id: str, method: str, error: InferenceError) -> None:
        """Called when an RPC was refused before its request was read."""
        if self._access_log is None:
            return
        name = method.rpartition("/")[2]
        self._access_log.write(
            request_id=request_id,
            # A caller can make up any name.
            method=name if name in _METHODS else "unknown",
            status=error.status.name,
            end=error.reason,
        )
