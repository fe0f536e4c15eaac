"""vLLM's span in the trace of a request."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession

from inference.config import ModelConfig
from tests.collector import Received, collecting
from tests.conftest import eventually
from tests.contract import programs
from tests.engines.conftest import ENVIRONMENT

CANARY = "canary-8e14"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.timeout(300)  # vLLM starts in a process of its own.
async def test_vllm_has_the_third_span_of_one_trace(smollm2_directory: Path) -> None:
    model = ModelConfig(
        id="smollm2",
        engine="vllm",
        source=str(smollm2_directory),
        engine_args={"dtype": "float32", "enforce_eager": True, "max_model_len": 256},
    )
    environment = ENVIRONMENT | {"OTEL_BSP_SCHEDULE_DELAY": "100", "HOME": os.environ["HOME"]}
    with collecting() as collector:
        options = ["--otlp-endpoint", f"http://127.0.0.1:{collector.port}"]
        async with AsyncExitStack() as ends:
            enter = ends.enter_async_context
            service = await enter(programs.service(model, options=options, environment=environment))
            await eventually(lambda: "inference.server ready" in service.log.read_text(), 240)
            edge = await enter(
                programs.edge(service.port, options=options, environment=environment)
            )
            http = await enter(ClientSession(f"http://127.0.0.1:{edge.port}"))
            messages = [{"role": "user", "content": CANARY}]
            body = {"model": "smollm2", "messages": messages, "max_tokens": 4, "temperature": 0.5}
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
                usage = (await response.json())["usage"]

            def of_trace() -> list[Received]:
                return [span for span in list(collector.spans) if span.trace_id == TRACE]

            await eventually(lambda: len(of_trace()) == 3, 60)
            service.send(signal.SIGTERM)
            assert await service.ended(60) == 0
        spans = {span.name: span for span in of_trace()}
        first, second = (s for s in of_trace() if s.name == "chat smollm2")
        outer, inner = (first, second) if second.parent_id == first.span_id else (second, first)
        assert (outer.service, inner.service) == ("isthmus-edge", "isthmus-inference")
        assert outer.parent_id == PARENT
        assert inner.parent_id == outer.span_id
        request = spans["llm_request"]
        assert request.service == "isthmus-inference"
        assert request.parent_id == inner.span_id
        assert request.attributes["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
        assert request.attributes["gen_ai.usage.completion_tokens"] == usage["completion_tokens"]
        assert not any(CANARY in span.raw for span in collector.spans)
