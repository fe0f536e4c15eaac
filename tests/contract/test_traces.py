"""Traces of both programs, as a collector receives them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.generate_pb2 import GenerateRequest
from keys import ConfigError, create_key
from tests.collector import Collector, Received, collecting
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.contract import programs

CANARY = "canary-5c20"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
EDGE, SERVICE = "isthmus-edge", "isthmus-inference"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def traced(collector: Collector) -> dict[str, Any]:
    url = f"http://127.0.0.1:{collector.port}"
    return {"otlp_endpoint": url, "server": {"otlp_endpoint": url}}


async def chat(stack: Stack, text: str, request_id: str, **body: Any) -> int:
    headers = {"x-request-id": request_id, "traceparent": f"00-{TRACE}-{PARENT}-01"}
    headers["tracestate"] = "vendor=1"
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **body}
    async with stack.http.post("/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def spans_of(collector: Collector, request_id: str) -> tuple[Received, Received]:
    """The span of the edge and that of its only call."""
    found: list[list[Received]] = []

    def both() -> bool:
        found[:] = (collector.of(n, isthmus_request_id=request_id) for n in (EDGE, SERVICE))
        return all(found)

    await eventually(both)
    (edge,), (service,) = found
    return edge, service


@pytest.mark.parametrize("stream", [False, True])
async def test_one_trace_has_the_spans_of_client_edge_and_service(
    collector: Collector, start_stack: StartStack, tmp_path: Path, stream: bool
) -> None:
    keys = tmp_path / "keys.json"
    entry, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(
        keys=keys, server_keys=keys, key=key, upstream_token=edge_key, **traced(collector)
    )
    parameters = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 5, "n": 2}
    assert await chat(stack, "a b c", "one", stream=stream, **parameters) == 200
    edge, service = await spans_of(collector, "one")
    assert edge.trace_id == service.trace_id == TRACE
    assert edge.parent_id == PARENT
    assert service.parent_id == edge.span_id
    assert "vendor=1" in service.raw
    for span in (edge, service):
        assert span.name == "chat gpt-4"
        assert not span.failed
        assert span.attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
        assert span.attributes.pop("isthmus.key_id") == entry.id
        own = {
            name: span.attributes.pop(name) for name in list(span.attributes) if "gen_ai" in name
        }
        assert own == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "isthmus",
            "gen_ai.request.model": "gpt-4",
            "gen_ai.response.model": "scripted",
            "gen_ai.response.finish_reasons": ["length"],
            "gen_ai.request.stream": stream,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.seed": 7,
            "gen_ai.request.max_tokens": 5,
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.input_tokens": own["gen_ai.usage.input_tokens"],
            "gen_ai.usage.output_tokens": 10,
        }
        assert own["gen_ai.usage.input_tokens"] >= 3
    assert service.attributes.pop("isthmus.queue_seconds") >= 0
    assert edge.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "isthmus.request_id": "one",
    }
    assert service.attributes == {
        "rpc.system.name": "grpc",
        "rpc.response.status_code": "OK",
        "isthmus.request_id": "one",
    }


async def test_every_route_of_models_has_a_span_and_no_other(
    collector: Collector, start_stack: StartStack
) -> None:
    stack = await start_stack(TEXT, EMBEDDING, IMAGE, **traced(collector))
    said = {"model": "scripted", "messages": [{"role": "user", "content": "a"}]}
    for path, body, name in (
        ("completions", {"model": "scripted", "prompt": ["a", "b"]}, "text_completion scripted"),
        ("messages", said | {"max_tokens": 2}, "chat scripted"),
        ("messages/count_tokens", said, "tokenize scripted"),
        ("responses/input_tokens", {"model": "scripted", "input": "hi"}, "tokenize scripted"),
        ("embeddings", {"input": "a"}, "embeddings scripted-embedding"),
        ("images/generations", {"prompt": "a", "size": "64x64"}, "image_generation scripted-image"),
        ("../tokenize", {"prompt": "a"}, "tokenize scripted"),
        ("../detokenize", {"tokens": [1]}, "tokenize scripted"),
    ):
        async with stack.http.get("/v1/models") as response:
            assert response.status == 200
        async with stack.http.post(f"/v1/{path}", json=body) as response:
            assert response.status == 200
        calls = 2 if path == "completions" else 1
        await eventually(lambda: len(collector.spans) == 1 + calls)  # noqa: B023
        assert {span.name for span in collector.spans} == {name}
        assert len({span.trace_id for span in collector.spans}) == 1
        (edge,) = collector.of(EDGE)
        assert edge.parent_id == ""
        assert all(span.parent_id == edge.span_id for span in collector.of(SERVICE))
        collector.spans.clear()


async def test_failures_are_told_by_their_code(
    collector: Collector, start_stack: StartStack
) -> None:
    stack = await start_stack(**traced(collector))
    for stream, status in ((False, 500), (True, 200)):
        name = f"fault-{stream}"
        assert await chat(stack, json.dumps({"fail": "mid"}), name, stream=stream) == status
        for span in await spans_of(collector, name):
            assert span.failed
            assert span.attributes["error.type"] == "server_error"
    assert await chat(stack, "a", "long", max_tokens=99_999_999) == 400
    for span in await spans_of(collector, "long"):
        assert not span.failed
        assert span.attributes["error.type"] == "context_length_exceeded"
    assert await chat(stack, "a", "none", model="nothing") == 404
    await eventually(lambda: collector.of(EDGE, isthmus_request_id="none"))
    (span,) = collector.of(EDGE, isthmus_request_id="none")
    assert span.name == "chat"
    assert span.attributes["error.type"] == "model_not_found"
    slow = ModelConfig(id="slow", engine="scripted", engine_args={"step_seconds": 0.05})
    stack = await start_stack(slow, header_hold_seconds=0.0, **traced(collector))
    body = {"model": "slow", "prompt": "a", "max_tokens": 1000, "stream": True}
    headers = {"x-request-id": "left"}
    async with stack.http.post("/v1/completions", json=body, headers=headers) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    for span in await spans_of(collector, "left"):
        assert not span.failed
        assert span.attributes["error.type"] == "cancelled"


async def test_a_direct_call_continues_the_trace_of_its_caller(
    collector: Collector, start_stack: StartStack
) -> None:
    stack = await start_stack(**traced(collector))
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    request = GenerateRequest(model="scripted", text="a", request_id="direct")
    async for _ in stack.stub.Generate(request, metadata=metadata):
        pass
    await eventually(lambda: collector.spans)
    (span,) = collector.of(SERVICE)
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)


async def test_a_trace_that_its_caller_does_not_sample_has_no_span(
    collector: Collector, start_stack: StartStack
) -> None:
    stack = await start_stack(**traced(collector))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    body = {"model": "scripted", "prompt": "a"}
    async with stack.http.post("/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
    assert await chat(stack, "a", "sampled") == 200
    await spans_of(collector, "sampled")
    assert len(collector.spans) == 2


async def test_no_span_has_a_prompt_an_output_or_a_key(
    collector: Collector, start_stack: StartStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(
        keys=keys, server_keys=keys, key=key, upstream_token=edge_key, **traced(collector)
    )
    cues = [{"text": f"{CANARY} said"}, {"fail": "start"}, {"fail": "mid"}, {"fail": "refuse"}]
    for number, cue in enumerate(cues):
        for stream in (False, True):
            name = f"cue-{number}-{stream}"
            await chat(stack, json.dumps(cue), name, stream=stream, stop=[CANARY], user=CANARY)
            await spans_of(collector, name)
    await chat(stack, CANARY, "prompt")
    await chat(stack, "a", "model", model=CANARY)
    await chat(stack, "a", "member", **{CANARY: 1})
    await spans_of(collector, "prompt")
    for name in ("model", "member"):
        await eventually(lambda: collector.of(EDGE, isthmus_request_id=name))  # noqa: B023
    for secret in (CANARY, key, edge_key):
        assert not any(secret in span.raw for span in collector.spans)


def modules(program: programs.Program) -> set[str]:
    """The packages that a program has imported, of its log with PYTHONPROFILEIMPORTTIME."""
    lines = program.log.read_text().splitlines()
    names = (line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:"))
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_programs_send_spans_at_their_stop_and_import_nothing_when_off(
    collector: Collector, protocol: str
) -> None:
    port = collector.port if protocol == "grpc" else collector.http_port
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    environment["PYTHONPROFILEIMPORTTIME"] = "1"
    for options in ((), ("--otlp-endpoint", f"http://127.0.0.1:{port}")):
        async with AsyncExitStack() as ends:
            service = await ends.enter_async_context(
                programs.service(TEXT, options=options, environment=environment)
            )
            edge = await ends.enter_async_context(
                programs.edge(service.port, options=options, environment=environment)
            )
            async with ClientSession(f"http://127.0.0.1:{edge.port}") as http:
                body = {"model": "scripted", "prompt": "a"}
                async with http.post("/v1/completions", json=body) as response:
                    assert response.status == 200
            for program in (edge, service):
                loaded = modules(program)
                assert "msgspec" in loaded
                assert ("opentelemetry" in loaded) is bool(options)
                program.send(signal.SIGTERM)
                assert await program.ended() == 0
        assert len(collector.spans) == (2 if options else 0)


async def test_a_collector_that_is_gone_holds_up_nothing(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contract.tracing.CLOSE_SECONDS", 0.5)
    gone = {"otlp_endpoint": "http://127.0.0.1:9"}
    stack = await start_stack(**gone, server=gone)
    assert await chat(stack, "a", "one") == 200


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://user@host", "ftp://127.0.0.1"])
async def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        async with serving(EdgeConfig(port=0, otlp_endpoint=endpoint)):
            pass
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(TEXT,), otlp_endpoint=endpoint))
