"""Writes the access log and the trace span of each finished request.

The middleware calls the observer around each request; the runner fills the outcome of requests for
models. Without an observer neither does anything.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from contract.access_log import DONE, AccessLog
from contract.request_metrics import CANCELLED, Spent, finish_names
from contract.tracing import Tracing, request_attributes, trace_headers
from edge.metrics import CLIENT_LEFT
from edge.state import EdgeRequest
from edge.upstream.router import ModelNotFoundError, NoReplicaError
from edge.upstream.transport import UpstreamRequest

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# The value of gen_ai.operation.name for each route whose requests go to a model.
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
    "/v1/images/generations": "image_generation",
    "/tokenize": "tokenize",
    "/detokenize": "tokenize",
    "/v1/messages/count_tokens": "tokenize",
    "/v1/responses/input_tokens": "tokenize",
}
# These have a line only if they are refused: probes and schedulers ask many times a minute.
_PROBED: Final = frozenset({"/health", "/ready", "/ping", "/load", "/metrics"})


@dataclass(slots=True)
class Outcome:
    """The result of a request for a model, for its log line and its span.

    Attributes:
        request: Its first call; None if it has made none.
        spent: What its calls have used, if they have told.
        first_seconds: From its arrival to its first output.
        finishes: The finish reasons of its choices.
        error: What it failed of; "" for a success.
        stage: How far it had come when its client left: waiting, before_output or output.
        span: Of a request to a model's route; None without tracing.
        trace_headers: For its calls; None without a span.
    """

    request: UpstreamRequest | None = None
    spent: Spent | None = None
    first_seconds: float | None = None
    finishes: list[int] = field(default_factory=list)
    error: str = ""
    stage: str = ""
    span: Span | None = None
    trace_headers: dict[str, str] | None = None

    def set(
        self,
        request: UpstreamRequest,
        spent: Spent | None,
        first_seconds: float | None,
        error: str,
        stage: str,
    ) -> None:
        """Called when the exchange ends."""
        self.request, self.spent, self.error, self.stage = request, spent, error, stage
        # The service reports the time to first token only if there are output tokens.
        if spent is not None and spent.output_tokens:
            first_seconds = spent.first_seconds
        self.first_seconds = first_seconds


class Observer:
    """Writes a line for each finished request, and traces those for models.

    Args:
        access_log: None if it is off.
        tracing: None if it is off.
    """

    def __init__(self, access_log: AccessLog | None, tracing: Tracing | None) -> None:
        self._access_log = access_log
        self._tracing = tracing

    def begin(self, request: EdgeRequest, path: str) -> None:
        """Called before anything else is done for a request; `path` as for `end`."""
        outcome = request.outcome = Outcome()
        if self._tracing is not None and request.method == "POST" and path in _OPERATIONS:
            outcome.span = self._tracing.start(_OPERATIONS[path], trace_headers(request.headers))
            outcome.trace_headers = self._tracing.headers(outcome.span)

    def end(self, request: EdgeRequest, path: str, status: int, error: str) -> None:
        """Called when its handler has ended.

        Args:
            request: The request.
            path: The route's template; "" for an unknown path.
            status: HTTP status, or CLIENT_LEFT.
            error: The code of the error that it was answered with; "" for none.
        """
        outcome = request.outcome or Outcome()
        error = CANCELLED if status == CLIENT_LEFT else error or outcome.error
        model = _model(request, outcome)
        if self._access_log is not None and (error or path not in _PROBED):
            self._write(self._access_log, request, outcome, path, status, error, model)
        if self._tracing is not None and (span := outcome.span) is not None:
            attributes = {
                "gen_ai.operation.name": _OPERATIONS[path],
                "http.request.method": request.method,
                "http.route": path,
                "http.response.status_code": status,
                "isthmus.request_id": request.id,
                "isthmus.key_id": request.principal or None,
            }
            name = _OPERATIONS[path]
            if (call := outcome.request) is not None:
                name = f"{name} {call.model}"
                first = outcome.first_seconds
                attributes |= request_attributes(
                    call, model, outcome.spent, first, outcome.finishes
                )
            # An error in a stream comes after its 200.
            failed = status >= 500 or (status == 200 and error != "")
            self._tracing.end(span, name, attributes, error, failed=failed)

    async def close(self) -> None:
        """Sends the spans that are left."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _write(
        self,
        access_log: AccessLog,
        request: EdgeRequest,
        outcome: Outcome,
        path: str,
        status: int,
        error: str,
        model: str | None,
    ) -> None:
        spent, first = outcome.spent, outcome.first_seconds
        access_log.write(
            request_id=request.id,
            method=request.method if path else None,
            path=path or "unknown",
            status=status,
            key=request.principal or None,
            model=model,
            input_tokens=None if spent is None else spent.input_tokens,
            output_tokens=None if spent is None else spent.output_tokens,
            first_output_ms=None if first is None else first * 1000,
            total_ms=(time.monotonic() - request.started) * 1000,
            end=error or ",".join(finish_names(outcome.finishes)) or DONE,
            stage=outcome.stage,
        )


def _model(request: EdgeRequest, outcome: Outcome) -> str | None:
    """The id of the model that served it; None if none did."""
    if outcome.request is None:
        return None
    try:
        return request.edge.router.find(outcome.request.model).id
    except (ModelNotFoundError, NoReplicaError):
        return None  # It is not served any more.
