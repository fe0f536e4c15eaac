"""An OTLP collector that keeps the spans it receives, over gRPC and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True)
class Received:
    """A span as it came, with its service and its attributes as plain values."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool
    raw: str


class Collector(service.TraceServiceServicer):  # type: ignore[misc]
    """Its `port` is that of OTLP over gRPC, `http_port` that of OTLP over HTTP."""

    def __init__(self) -> None:
        self.port = self.http_port = 0
        self.spans: list[Received] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            of = {entry.key: _value(entry.value) for entry in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += (
                    Received(
                        of["service.name"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        {entry.key: _value(entry.value) for entry in span.attributes},
                        span.status.code == 2,
                        str(resource.resource) + str(scope.scope) + str(span),
                    )
                    for span in scope.spans
                )
        return messages.ExportTraceServiceResponse()

    def of(self, name: str, **attributes: Any) -> list[Received]:
        """The spans of a service whose attributes (with "_" for ".") have these values."""
        return [
            span
            for span in list(self.spans)
            if span.service == name
            and attributes.items()
            <= {key.replace(".", "_"): str(v) for key, v in span.attributes.items()}.items()
        ]


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(entry) for entry in value.array_value.values]
    return getattr(value, str(value.WhichOneof("value")))


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.Export(messages.ExportTraceServiceRequest.FromString(body), None)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever)
    thread.start()
    server = grpc.server(ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port("127.0.0.1:0")
    collector.http_port = http.server_port
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
        http.shutdown()
        http.server_close()
        thread.join()
