"""What an inference process tells of a finished call: its line in the access log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from contract.access_log import DONE, AccessLog
from contract.request_metrics import CANCELLED, finish_names, operation
from inference.errors import InferenceError, status_name
from isthmus.v1.generate_pb2 import GenerateRequest

if TYPE_CHECKING:
    from inference.metrics import CallRecord
    from inference.rpc import CallContext

_METHODS: Final = frozenset({"Generate", "Embed", "GenerateImage", "ListModels", "Session"})


class Observer:
    """Writes a line for each finished call."""

    def __init__(self, access_log: AccessLog) -> None:
        self._access_log = access_log

    def ended(self, record: CallRecord, context: CallContext) -> None:
        """Called when a call has ended, whatever became of it."""
        emitter, arrived, error = record.emitter, record.arrived, record.error
        spent = emitter.spent if emitter is not None else None
        first = emitter.first_output if emitter is not None else None
        permitted = record.permitted
        output_tokens = None if spent is None else spent.output_tokens
        if spent is None and emitter is not None and isinstance(record.request, GenerateRequest):
            # What the key is charged for a text that ended early.
            output_tokens = emitter.charge.used_tokens - record.prompt_tokens
        finishes = emitter.finishes if emitter is not None else ()
        self._access_log.write(
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
        name = method.rpartition("/")[2]
        self._access_log.write(
            request_id=request_id,
            # A caller can make up any name.
            method=name if name in _METHODS else "unknown",
            status=error.status.name,
            end=error.reason,
        )
