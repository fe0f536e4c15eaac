"""GET /metrics of both programs, beside what the client of the requests counted itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig
from isthmus.v1.generate_pb2 import GenerateRequest
from keys import create_key
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.contract import programs

DURATION = "gen_ai_server_request_duration_seconds"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
OUTPUT_TOKEN = "gen_ai_server_time_per_output_token_seconds"
CPU = "process_cpu_seconds_total"
USAGE = "gen_ai_client_token_usage"
# The buckets of OpenTelemetry's conventions, as they are written there.
BUCKETS = {
    DURATION: "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92",
    FIRST_TOKEN: "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0",
    OUTPUT_TOKEN: "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5",
    USAGE: "1 4 16 64 256 1024 4096 16384 65536 262144 1048576 4194304 16777216 67108864",
}


class Scrape:
    """The families of one answer, by name."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, "a family is in one piece"
            self.families[family.name] = family

    def sum(self, sample: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels."""
        return sum(
            found.value
            for family in self.families.values()
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def values(self, sample: str, label: str) -> set[str]:
        """The values of a label in all samples of a name."""
        return {
            found.labels[label]
            for family in self.families.values()
            for found in family.samples
            if found.name == sample
        }


async def scrape(stack: Stack) -> Scrape:
    async with stack.http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scrape(await response.text())


async def scrape_at(port: int) -> Scrape:
    async with ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
            return Scrape(await response.text())


async def post(stack: Stack, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with stack.http.post(path, json=body) as response:
        return response.status, json.loads(await response.text())


async def chat(stack: Stack, text: str = "a b", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    status, answer = await post(
        stack, "/v1/chat/completions", model="scripted", messages=messages, **body
    )
    assert status == 200
    usage: dict[str, Any] = answer["usage"]
    return usage


async def stream(stack: Stack, **body: Any) -> dict[str, Any]:
    body |= {"model": "gpt-4", "stream": True, "stream_options": {"include_usage": True}}
    async with stack.http.post("/v1/completions", json=body) as response:
        assert response.status == 200
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    usage: dict[str, Any] = json.loads(lines[-1].removeprefix(b"data: "))["usage"]
    return usage


async def test_tokens_and_requests_are_those_that_the_client_counted(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(TEXT, EMBEDDING, IMAGE, server={"metrics_listen": "127.0.0.1:0"})
    usages = [await chat(stack, max_tokens=n) for n in (1, 5, 70)]
    streams = [await stream(stack, prompt="a b c", max_tokens=n) for n in (2, 9)]
    status, answer = await post(stack, "/v1/embeddings", input=["a", "b c"])
    assert status == 200
    status, _ = await post(stack, "/v1/images/generations", prompt="a", size="64x64")
    assert status == 200
    edge, service = await scrape(stack), await scrape_at(stack.server.metrics_port)
    for seen in (edge, service):
        for operation, name, told in (
            ("chat", "scripted", usages),
            ("text_completion", "gpt-4", streams),
            ("embeddings", "scripted-embedding", [answer["usage"]]),
        ):
            labels = {
                "gen_ai_operation_name": operation,
                "gen_ai_provider_name": "isthmus",
                "gen_ai_request_model": name,
                "gen_ai_response_model": name.replace("gpt-4", "scripted"),
            }
            assert seen.sum(f"{DURATION}_count", **labels, error_type="") == len(told)
            for kind, member in (("input", "prompt_tokens"), ("output", "completion_tokens")):
                tokens = [usage.get(member, 0) for usage in told]
                kinds = {**labels, "gen_ai_token_type": kind}
                assert seen.sum(f"{USAGE}_sum", **kinds) == sum(tokens)
                for bound in BUCKETS[USAGE].split():
                    below = len([n for n in tokens if n <= int(bound)])
                    le = str(float(bound))
                    assert seen.sum(f"{USAGE}_bucket", **kinds, le=le) == below
            tokens = [usage.get("completion_tokens", 0) for usage in told]
            assert seen.sum(f"{FIRST_TOKEN}_count", **labels) == len([n for n in tokens if n])
            assert seen.sum(f"{OUTPUT_TOKEN}_count", **labels) == len([n for n in tokens if n > 1])
        assert seen.sum(f"{DURATION}_count", gen_ai_operation_name="image_generation") == 1
    assert edge.sum("isthmus_http_responses_total", code="200", method="POST") == 7


async def test_families_have_the_names_types_and_buckets_of_the_conventions(stack: Stack) -> None:
    await chat(stack)
    seen = await scrape(stack)
    for name, bounds in BUCKETS.items():
        assert seen.families[name].type == "histogram"
        wanted = {str(float(bound)) for bound in bounds.split()} | {"+Inf"}
        assert seen.values(f"{name}_bucket", "le") == wanted
    counters = {"isthmus_http_responses", "isthmus_replays", "isthmus_exchanges_cancelled"}
    assert {seen.families[name].type for name in counters} == {"counter"}
    assert all(family.documentation for family in seen.families.values())


async def test_time_to_first_token_is_a_part_of_the_duration(start_stack: StartStack) -> None:
    slow = ModelConfig(id="scripted", engine="scripted", engine_args={"step_seconds": 0.02})
    stack = await start_stack(slow, server={"metrics_listen": "127.0.0.1:0"})
    await chat(stack, max_tokens=10)
    await chat(stack, max_tokens=10, stream=False)
    body = {"model": "scripted", "prompt": "x", "max_tokens": 10, "stream": True}
    async with stack.http.post("/v1/completions", json=body) as response:
        await response.read()
    for seen in (await scrape(stack), await scrape_at(stack.server.metrics_port)):
        first, whole = seen.sum(f"{FIRST_TOKEN}_sum"), seen.sum(f"{DURATION}_sum")
        token = seen.sum(f"{OUTPUT_TOKEN}_sum")
        assert 0 < first < whole
        # The mean of each request times its nine gaps.
        assert first + 9 * token == pytest.approx(whole, rel=0.3)
        assert token >= 3 * 0.018


async def test_failures_count_by_their_error_and_made_up_names_leave_no_series(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(TEXT, server={"metrics_listen": "127.0.0.1:0"})
    wanted = {404: 40, 400: 2}
    for number in range(40):
        status, _ = await post(stack, "/v1/completions", model=f"secret{number}", prompt="x")
        assert status == 404
    for value in ("x", 9):
        status, _ = await post(
            stack, "/v1/completions", model="scripted", prompt="x", temperature=value
        )
        assert status == 400
    messages = [{"role": "user", "content": "a " * 20}]
    status, answer = await post(stack, "/v1/chat/completions", model="tiny", messages=messages)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    edge, service = await scrape(stack), await scrape_at(stack.server.metrics_port)
    assert "secret" not in edge.text + service.text
    for code, count in wanted.items():
        labels = {"path": "/v1/completions", "code": str(code)}
        assert edge.sum("isthmus_http_responses_total", **labels) == count
    for seen in (edge, service):
        assert seen.sum(f"{DURATION}_count", error_type="context_length_exceeded") == 1
        assert seen.sum(f"{USAGE}_count", gen_ai_request_model="tiny") == 0
    assert service.sum("isthmus_refusals_total", reason="context_length_exceeded") == 1


async def test_made_up_names_over_grpc_leave_no_series(start_stack: StartStack) -> None:
    stack = await start_stack(TEXT, server={"metrics_listen": "127.0.0.1:0"})
    for number in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stack.stub.Generate(GenerateRequest(model=f"secret{number}", text="x")):
                pass
    service = await scrape_at(stack.server.metrics_port)
    assert "secret" not in service.text
    labels = {"gen_ai_request_model": "unknown", "error_type": "model_not_found"}
    assert service.sum(f"{DURATION}_count", **labels) == 3


async def test_unknown_paths_and_methods_leave_no_series(stack: Stack) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
        async with stack.http.request(method, f"/secret/{method}") as response:
            assert response.status == 404
    seen = await scrape(stack)
    assert "secret" not in seen.text
    assert seen.sum("isthmus_http_responses_total", path="unknown", code="404") == 5
    assert seen.values("isthmus_http_responses_total", "method") == {""}


@pytest.mark.parametrize(
    ("cue", "stage"),
    [({"fail": "hang"}, "output"), ({"prefill_seconds": 60}, "before_output")],
)
async def test_client_that_leaves_counts_by_the_stage(
    start_stack: StartStack, cue: dict[str, Any], stage: str
) -> None:
    stack = await start_stack(
        TEXT, server={"metrics_listen": "127.0.0.1:0"}, header_hold_seconds=0.0
    )
    body = {"model": "scripted", "prompt": json.dumps(cue), "stream": True}
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            async with stack.http.post("/v1/completions", json=body) as response:
                await response.read()
    await eventually(lambda: stack.edge.requests == 0)
    await eventually(lambda: stack.server.registry.running_calls == 0)
    edge, service = await scrape(stack), await scrape_at(stack.server.metrics_port)
    assert edge.sum("isthmus_exchanges_cancelled_total", stage=stage) == 1
    assert service.sum("isthmus_cancels_total", stage=stage) == 1
    for seen in (edge, service):
        assert seen.sum(f"{DURATION}_count", error_type="cancelled") == 1
    assert service.sum("isthmus_abort_seconds_count") == 1
    assert service.sum("isthmus_abort_seconds_sum") < 1


async def test_schedulers_read_the_load_of_the_engine(start_stack: StartStack) -> None:
    narrow = ModelConfig(id="scripted", engine="scripted", max_running=2)
    stack = await start_stack(narrow, EMBEDDING, server={"metrics_listen": "127.0.0.1:0"})
    body = {"model": "scripted", "prompt": json.dumps({"fail": "hang"}), "max_tokens": 5}
    asking = [asyncio.create_task(stack.http.post("/v1/completions", json=body)) for _ in range(5)]

    async def loaded() -> Scrape:
        async with asyncio.timeout(30):
            while (seen := await scrape(stack)).sum("vllm:num_requests_waiting") != 3:
                await asyncio.sleep(0.05)
        return seen

    seen = await loaded()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    labels = {"model_name": "scripted", "engine": "0"}
    assert seen.sum("vllm:num_requests_running", **labels) == 2
    assert seen.sum("vllm:kv_cache_usage_perc", **labels) == pytest.approx(2 / 1024)
    assert seen.sum("vllm:cache_config_info", **labels, num_gpu_blocks="1024", block_size="16") == 1
    assert seen.families["vllm:lora_requests_info"].samples
    assert "scripted-embedding" not in seen.values("vllm:num_requests_running", "model_name")
    service = await scrape_at(stack.server.metrics_port)
    assert service.sum("isthmus_permits", model="scripted") == 2


async def test_frequent_scrapes_make_little_but_see_the_load(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = await start_stack()
    made = 0
    collect = stack.edge.metrics.collect

    def counted() -> Iterator[Metric]:
        nonlocal made
        made += 1
        return collect()

    monkeypatch.setattr(stack.edge.metrics, "collect", counted)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(100):
        await scrape(stack)
    await chat(stack)
    body = {"model": "scripted", "prompt": json.dumps({"fail": "hang"})}
    hanging = asyncio.create_task(stack.http.post("/v1/completions", json=body))
    async with asyncio.timeout(30):
        while (await scrape(stack)).sum("vllm:num_requests_running") != 1:
            await asyncio.sleep(0.01)
        while (await scrape(stack)).sum(f"{DURATION}_count") != 1:
            await asyncio.sleep(0.01)
    assert made <= 10 + 0.5 * (loop.time() - began) + 1
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_metrics_need_a_key_where_other_routes_do(
    start_stack: StartStack, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    _, api = create_key(path, "somebody")
    _, metrics = create_key(path, "prometheus", scope="metrics")
    stack = await start_stack(keys=path, key=metrics)

    async def status(url: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        async with stack.http.get(url, headers=headers) as response:
            return response.status

    assert [await status("/metrics", key) for key in (api, metrics, "wrong")] == [200, 200, 401]
    assert [await status("/v1/models", key) for key in (api, metrics)] == [200, 403]
    async with ClientSession(stack.url) as http, http.get("/metrics") as response:
        assert response.status == 401


async def test_metrics_can_be_open(start_stack: StartStack, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create_key(path, "somebody")
    stack = await start_stack(keys=path, metrics_open=True)
    async with ClientSession(stack.url) as http:
        for url, status in (("/metrics", 200), ("/v1/models", 401)):
            async with http.get(url) as response:
                assert response.status == status


async def test_families_of_schedulers_are_there_before_any_replica_is_known() -> None:
    config = EdgeConfig(port=0, upstreams=("nowhere.invalid:1",), allow_plaintext=True)
    async with serving(config) as (_, port):
        families = (await scrape_at(port)).families
    assert {name for name in families if name.startswith("vllm:")} >= {
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    }


async def test_metrics_can_have_a_listener_of_their_own(
    start_stack: StartStack, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    _, key = create_key(path, "somebody")
    port = programs.fixed_port()
    stack = await start_stack(keys=path, key=key, metrics_listen=f"127.0.0.1:{port}")
    await chat(stack)
    assert (await scrape_at(port)).sum(f"{DURATION}_count") == 1
    async with stack.http.get("/metrics") as response:
        assert response.status == 404
    async with ClientSession(f"http://127.0.0.1:{port}") as http:
        for method, url in (("GET", "/v1/models"), ("POST", "/metrics")):
            async with http.request(method, url) as response:
                assert response.status == 404


async def test_no_prompt_answer_or_key_is_in_metrics_or_logs(
    start_stack: StartStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "keys.json"
    _, key = create_key(path, "somebody")
    stack = await start_stack(keys=path, key=key, server={"metrics_listen": "127.0.0.1:0"})
    cue = json.dumps({"text": "canary-answer", "fail": "hang"})
    await chat(stack, text="canary-prompt")
    await post(stack, "/v1/completions", model="scripted", prompt="canary-prompt", n=1000)
    await post(stack, "/v1/completions", model="canary-model", prompt="x")
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await post(stack, "/v1/completions", model="scripted", prompt=cue, user="canary-user")
    texts = [(await scrape(stack)).text, (await scrape_at(stack.server.metrics_port)).text]
    for text in (*texts, caplog.text):
        assert "canary" not in text
        assert key not in text


async def test_edges_behind_one_port_answer_for_all(tmp_path: Path) -> None:
    async with AsyncExitStack() as ends:
        service = await ends.enter_async_context(programs.service(TEXT))
        edge = await ends.enter_async_context(
            programs.edge(service.port, start=("-m", "launch", "edge", "--processes", "2"))
        )

        async def ask() -> None:
            # A connection for each request, which the kernel gives to either process.
            async with ClientSession(f"http://127.0.0.1:{edge.port}") as http:
                body = {"model": "scripted", "prompt": "x", "max_tokens": 3}
                async with http.post("/v1/completions", json=body) as response:
                    assert (await response.json())["usage"]["completion_tokens"] == 3

        async with asyncio.timeout(30):
            # Both have started.
            while len((await scrape_at(edge.port)).values(CPU, "process")) < 2:
                await asyncio.sleep(0.1)
        for _ in range(30):
            await ask()
        for _ in range(4):
            seen = await scrape_at(edge.port)
            assert seen.sum(f"{DURATION}_count") == 30
            assert seen.sum(f"{USAGE}_sum", gen_ai_token_type="output") == 90
            assert seen.values(f"{DURATION}_count", "process") == {"edge-1", "edge-2"}
            assert seen.values(CPU, "process") == {"edge-1", "edge-2"}
            assert len(seen.families["vllm:num_requests_running"].samples) == 1
