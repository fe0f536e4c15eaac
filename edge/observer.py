"""What the edge tells of a finished request: its line in the access log.

The middleware calls the observer around each request; the runner fills the outcome of requests for
models. Without an observer neither does anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from contract.access_log import DONE, AccessLog
from contract.request_metrics import CANCELLED, Spent, finish_names
from edge.metrics import CLIENT_LEFT
from edge.state import EDGE, PRINCIPAL, REQUEST_ID, STARTED
from edge.upstream.router import ModelNotFoundError, NoReplicaError
from edge.upstream.transport import UpstreamRequest

# These have a line only if they are refused: probes and schedulers ask many times a minute.
_PROBED: Final = frozenset({"/health", "/ready", "/ping", "/load", "/metrics"})


@dataclass(slots=True)
class Outcome:
    """What became of a request for a model.

    Attributes:
        request: Its first call; None if it has made none.
        spent: What its calls have used, if they have told.
        first_seconds: From its arrival to its first output.
        finishes: The finish reasons of its choices.
        error: What it failed of; "" for a success.
        stage: How far it had come when its client left: waiting, before_output or output.
    """

    request: UpstreamRequest | None = None
    spent: Spent | None = None
    first_seconds: float | None = None
    finishes: list[int] = field(default_factory=list)
    error: str = ""
    stage: str = ""

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
        self.first_seconds = spent.first_seconds if spent is not None else first_seconds


OUTCOME: Final = web.RequestKey("outcome", Outcome)


class Observer:
    """Writes a line for each finished request."""

    def __init__(self, access_log: AccessLog) -> None:
        self._access_log = access_log

    def begin(self, request: web.Request) -> None:
        """Called before anything else is done for a request."""
        request[OUTCOME] = Outcome()

    def end(self, request: web.Request, path: str, status: int, error: str) -> None:
        """Called when its handler has ended.

        Args:
            request: The request.
            path: The route's template; "" for an unknown path.
            status: HTTP status, or CLIENT_LEFT.
            error: The code of the error that it was answered with; "" for none.
        """
        if path in _PROBED and not error:
            return
        outcome = request[OUTCOME]
        error = CANCELLED if status == CLIENT_LEFT else error or outcome.error
        spent, first = outcome.spent, outcome.first_seconds
        self._access_log.write(
            request_id=request[REQUEST_ID],
            method=request.method if path else None,
            path=path or "unknown",
            status=status,
            key=request.get(PRINCIPAL),
            model=_model(request, outcome),
            input_tokens=None if spent is None else spent.input_tokens,
            output_tokens=None if spent is None else spent.output_tokens,
            first_output_ms=None if first is None else first * 1000,
            total_ms=(time.monotonic() - request[STARTED]) * 1000,
            end=error or ",".join(finish_names(outcome.finishes)) or DONE,
            stage=outcome.stage,
        )


def _model(request: web.Request, outcome: Outcome) -> str | None:
    """The id of the model that served it; None if none did."""
    if outcome.request is None:
        return None
    try:
        return request.app[EDGE].router.find(outcome.request.model).id
    except (ModelNotFoundError, NoReplicaError):
        return None  # It is not served any more.
