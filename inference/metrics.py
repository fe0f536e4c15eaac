"""Metrics of an inference process.

  isthmus_...                    labels    what
  -----------------------------  --------  ------------------------------------------------------
  queue_wait_seconds             model     wait for a permit, of the calls that got one; counts of
                                           tokens have permits of their own
  queue_depth                    model     calls that wait for a permit
  permits_used, permits          model     units of admission that are held, and all
  calls_running                            calls in flight, those that wait included
  refusals_total                 reason    calls that were refused before they were admitted
  cancels_total                  stage     calls whose caller left: waiting, before_output, output
  abort_seconds                            from the cancel of a call to the end of its work
  output_tokens_total            model     tokens, vectors and images made
  model_ready                    model     1 if the model takes requests
  sessions                                 open sessions of edges
  session_steps_total                      messages with output
  session_credit_stalls_total              times that output waited for an edge to acknowledge

Those of every program are in contract/process_metrics.py, gen_ai_* in contract/request_metrics.py.
An engine's library may have metrics of its own: vLLM's are vllm:*.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from prometheus_client.core import Metric

from contract.metrics import (
    SECONDS_BUCKETS,
    Counter,
    Counters,
    Histograms,
    counter,
    gauge,
    one,
)
from contract.request_metrics import CANCELLED, RequestMetrics, operation

if TYPE_CHECKING:
    from inference.registry import Registry, ServedModel

_MODEL: Final = ("model",)


class CallRecord(Struct):
    """The course of a call, for its metrics, log line and span.

    Attributes:
        request: Its Request.
        arrived: Monotonic seconds of its arrival.
        model: The id of its model; "" if there is none.
        permitted: Monotonic seconds at which it got its permit; None if it did not.
        prompt_tokens: Tokens of its prompt; 0 before they were counted.
        emitter: The Emitter that knows its output; None before it was admitted.
        error: The reason of its failure; "" for a success.
        span: Its Span; None without tracing.
        trace_headers: For what it starts in the engine; None without a span.
    """

    request: Any
    arrived: float
    model: str = ""
    permitted: float | None = None
    prompt_tokens: int = 0
    emitter: Any = None
    error: str = ""
    span: Any = None
    trace_headers: dict[str, str] | None = None

    @property
    def stage(self) -> str:
        """Where it ended: waiting, before_output or output."""
        if self.permitted is None:
            return "waiting"
        has_output = self.emitter is not None and self.emitter.outputs
        return "output" if has_output else "before_output"


class InferenceMetrics:
    """The metrics of one process.

    Args:
        registry: Its models, whose state is read when somebody asks for the metrics.

    Attributes:
        sessions: Sessions of edges that are open.
        session_steps, session_stalls: See the table above.
        aborts: Takes the times from the cancel of a call to the end of its work.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.requests = RequestMetrics()
        self._waits = Histograms(
            "isthmus_queue_wait_seconds",
            "Wait for a permit, of the calls that got one.",
            SECONDS_BUCKETS,
            _MODEL,
        )
        self._refusals = Counters(
            "isthmus_refusals", "Calls that were refused before they were admitted.", ("reason",)
        )
        self._cancels = Counters(
            "isthmus_cancels", "Calls whose caller left, by how far they had come.", ("stage",)
        )
        self._aborts = Histograms(
            "isthmus_abort_seconds",
            "From the cancel of a call to the end of its work.",
            SECONDS_BUCKETS,
        )
        self.aborts = self._aborts.of()
        self.sessions = 0
        self.session_steps = Counter()
        self.session_stalls = Counter()

    def call_ended(self, record: CallRecord) -> None:
        """Counts a call."""
        emitter = record.emitter
        self.requests.ended(
            operation(record.request),
            record.request.model,
            record.model,
            time.monotonic() - record.arrived,
            record.error,
            emitter.spent if emitter is not None else None,
        )
        if record.permitted is not None:
            self._waits.of(record.model).observe(record.permitted - record.arrived)
        if record.error == CANCELLED:
            self._cancels.of(record.stage).add()
        elif record.error and emitter is None:
            self._refusals.of(record.error).add()

    @property
    def histograms(self) -> tuple[Histograms, ...]:
        """All histograms."""
        return (*self.requests.families, self._waits, self._aborts)

    def collect(self) -> Iterator[Metric]:
        """All families as they are now."""
        for histograms in self.histograms:
            yield histograms.collect()
        yield self._refusals.collect()
        yield self._cancels.collect()
        yield from self._models()
        registry = self._registry
        yield gauge("isthmus_calls_running", "Calls in flight.", one(registry.running_calls))
        yield gauge("isthmus_sessions", "Open sessions of edges.", one(self.sessions))
        yield counter(
            "isthmus_session_steps", "Messages with output.", one(self.session_steps.value)
        )
        yield counter(
            "isthmus_session_credit_stalls",
            "Times that output waited for an edge to acknowledge.",
            one(self.session_stalls.value),
        )

    def _models(self) -> Iterator[Metric]:
        models = self._registry.models
        values: dict[tuple[str, str], Callable[[ServedModel], float]] = {
            ("model_ready", "1 if the model takes requests."): lambda m: m.ready(),
            ("queue_depth", "Calls that wait for a permit."): lambda m: m.admission.queued,
            ("permits_used", "Units of admission that are held."): lambda m: m.admission.running,
            ("permits", "Units of admission."): lambda m: m.config.running_limit,
        }
        for (name, text), value in values.items():
            each = [((model.config.id,), value(model)) for model in models]
            yield gauge(f"isthmus_{name}", text, each, _MODEL)
        made = [((model.config.id,), model.engine.health().generated_tokens) for model in models]
        yield counter("isthmus_output_tokens", "Tokens, vectors and images made.", made, _MODEL)
