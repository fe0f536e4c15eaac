"""vLLM's span in the trace of a request."""

from __future__ import annotations

import httpx

from tests.collector import Collector, Received
from tests.stack.conftest import Up, wait_until

CANARY = "canary-8e14"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def test_vllm_has_the_third_span_of_one_trace(up: Up, collector: Collector) -> None:
    model = "smollm2-135m-instruct"
    messages = [{"role": "user", "content": CANARY}]
    response = httpx.post(
        f"{up.url}/v1/chat/completions",
        json={"model": model, "messages": messages, "max_tokens": 4, "temperature": 0.5},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        timeout=100,
    )
    assert response.status_code == 200
    usage = response.json()["usage"]

    def of_trace() -> list[Received]:
        return [span for span in list(collector.spans) if span.trace_id == TRACE]

    wait_until(lambda: len(of_trace()) == 3, 60, "three spans")
    spans = {span.name: span for span in of_trace()}
    first, second = (span for span in of_trace() if span.name == f"chat {model}")
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
