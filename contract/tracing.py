"""Traces: a span for each request for a model, sent over OTLP to a collector.

One trace has the span of the edge, below it one of each call at the inference process, and below
that the span of vLLM. The context of a trace comes and goes as the headers of W3C's Trace Context,
over REST and as metadata over gRPC. Names and attributes are those of
https://opentelemetry.io/docs/specs/semconv/gen-ai/. No span has a prompt, an output or a key.

OpenTelemetry's packages are the extra `otel`; nothing of them is imported without an endpoint.
Their environment variables apply: OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES,
OTEL_EXPORTER_OTLP_HEADERS and others.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from contract.request_metrics import PROVIDER, ModelRequest, Spent, finish_names, operation
from isthmus.v1.generate_pb2 import GenerateRequest

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# The headers of W3C's Trace Context.
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_FORMS: Final = {
    TRACEPARENT: re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII),
    TRACESTATE: re.compile(r"[\x21-\x7e ]{1,512}"),
}
_ENDPOINT: Final = re.compile(r"https?://[^\s@?#]+")
_PROTOCOLS: Final = ("grpc", "http/protobuf")
# Rows of span attribute, submessage and field: `gen_ai.request.temperature` has the value of
# `GenerateRequest.sampling.temperature`.
_PARAMETERS: Final = (
    ("temperature", "sampling", "temperature"),
    ("top_p", "sampling", "top_p"),
    ("seed", "sampling", "seed"),
    ("max_tokens", "stopping", "max_tokens"),
    ("choice.count", "output", "n"),
)
# Seconds for the spans that are not sent yet, at a stop.
CLOSE_SECONDS: Final = 2.0


class TracingError(Exception):
    """Spans cannot be sent; the message names what is missing."""


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The well-formed headers of the trace that a request belongs to."""
    if TRACEPARENT not in headers and TRACESTATE not in headers:
        return {}  # Most requests belong to none.
    return {
        name: value
        for name, form in _FORMS.items()
        if (value := headers.get(name)) is not None and form.fullmatch(value)
    }


class Tracing:
    """Makes spans and sends them, in a thread of its own.

    Args:
        program: "edge" or "inference".
        endpoint: URL of an OTLP collector.

    Attributes:
        protocol: "grpc" or "http/protobuf"; from OTEL_EXPORTER_OTLP_TRACES_PROTOCOL.
        url: Where spans are sent. That is the endpoint; over HTTP with the path of traces.
        service: OTEL_SERVICE_NAME, or "isthmus-edge" or "isthmus-inference".

    Raises:
        TracingError: The packages are missing, or the endpoint or the protocol is not usable.
    """

    def __init__(self, program: str, endpoint: str) -> None:
        self.protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "grpc"
        )
        if not _ENDPOINT.fullmatch(endpoint):
            raise TracingError(f"{endpoint!r} is not like http://127.0.0.1:4317")
        if self.protocol not in _PROTOCOLS:
            raise TracingError(f"protocol {self.protocol!r}: must be {' or '.join(_PROTOCOLS)}")
        is_http = self.protocol != "grpc"
        self.url = f"{endpoint.rstrip('/')}/v1/traces" if is_http else endpoint
        self.service = os.environ.get("OTEL_SERVICE_NAME") or f"isthmus-{program}"
        try:
            self._load()
        except ImportError as error:
            raise TracingError("needs Isthmus's extra otel (pip install '.[otel]')") from error

    def _load(self) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        exporter: SpanExporter
        if self.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

            exporter = grpc_exporter.OTLPSpanExporter(endpoint=self.url)
        else:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

            exporter = http_exporter.OTLPSpanExporter(endpoint=self.url)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": self.service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("isthmus")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def start(self, name: str, headers: Mapping[str, str]) -> Span:
        """Starts the span of a request, below the span in its trace headers."""
        context = self._propagator.extract(headers)
        return self._tracer.start_span(name, context, self._trace.SpanKind.SERVER)

    def headers(self, span: Span) -> dict[str, str]:
        """The trace headers for what a request starts elsewhere."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._trace.set_span_in_context(span))
        return headers

    def end(
        self, span: Span, name: str, attributes: Mapping[str, Any], error: str, *, failed: bool
    ) -> None:
        """Ends a span.

        Args:
            span: From `start`.
            name: Its final name.
            attributes: Those without a value (None, "" or an empty list) are left out.
            error: What the request failed of; "" for a success.
            failed: Whether that is the fault of the server.
        """
        if span.is_recording():
            span.update_name(name)
            given = {**attributes, "error.type": error}
            span.set_attributes({k: v for k, v in given.items() if v not in (None, "", [])})
            if failed:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Sends what is left, within CLOSE_SECONDS; blocks."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)


def tracing(program: str, endpoint: str | None) -> Tracing | None:
    """The tracing of a program; None without an endpoint.

    Args:
        program: "edge" or "inference".
        endpoint: URL of an OTLP collector; by default OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises:
        TracingError: See Tracing.
    """
    endpoint = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return Tracing(program, endpoint) if endpoint else None


def request_attributes(
    request: ModelRequest,
    model: str | None,
    spent: Spent | None,
    first_seconds: float | None,
    finishes: Iterable[int],
) -> dict[str, Any]:
    """The attributes gen_ai.* of a request; None where there is no value.

    Args:
        request: It, or the first of its calls.
        model: The id of the model that served it.
        spent: What it used.
        first_seconds: From its arrival to its first output.
        finishes: The finish reasons of its choices.
    """
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.response.model": model,
        "gen_ai.response.time_to_first_chunk": first_seconds,
        "gen_ai.response.finish_reasons": finish_names(finishes),
    }
    if spent is not None:
        attributes["gen_ai.usage.input_tokens"] = spent.input_tokens
        attributes["gen_ai.usage.output_tokens"] = spent.output_tokens
    if isinstance(request, GenerateRequest):
        attributes["gen_ai.request.stream"] = not request.output.single_message
        for name, message, field in _PARAMETERS:
            inner = getattr(request, message)
            if inner.HasField(field):
                attributes[f"gen_ai.request.{name}"] = getattr(inner, field)
    return attributes
