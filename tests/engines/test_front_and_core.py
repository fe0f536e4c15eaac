"""Fronts and the process with their engine, with a thread in the place of vLLM's engine core.

No model is loaded, and the tokens are made up.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
from msgspec.structs import replace

from bench import tiny_model
from inference.config import ModelConfig
from inference.engines import cpu_plan
from inference.engines.base import EngineDeadError, Terms
from inference.engines.front_link import EngineLink, join
from inference.fronts import Front, engine_socket
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from tests.conftest import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.v1.engine import (
        EngineCoreOutput,
        EngineCoreOutputs,
        EngineCoreReadyResponse,
        EngineCoreRequest,
        EngineCoreRequestType,
        FinishReason,
        UtilityOutput,
    )
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

    from inference.engines import vllm_core, vllm_plugin
    from inference.engines.vllm_core import VllmCore, addresses
    from inference.engines.vllm_front import VllmFront
    from inference.engines.vllm_progress import timed_requests

pytestmark = [
    pytest.mark.timeout(300),  # Imports of seconds.
    # vLLM leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FRONTS = 2
ENDLESS = 1000


class Core:
    """A thread that does what vLLM's engine core does towards its clients.

    A request of up to ENDLESS tokens is answered at once; a longer one gets one token, and no end.

    Attributes:
        ready: Its message that it is ready.
        requests: The ids of the requests of each client.
        aborted: The clients whose requests were aborted.
        limits: The arguments of each limit_steps.
        silent: Whether it answers nothing.
    """

    ready = msgspec.msgpack.encode(
        EngineCoreReadyResponse(
            max_model_len=2048,
            num_gpu_blocks=64,
            block_size=16,
            dp_stats_address=None,
            dtype="float32",
            vllm_version="",
            world_size=1,
            data_parallel_size=1,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            data_parallel_rank=0,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            instance_id="",
            supports_lora=False,
            max_loras=0,
        )
    )

    def __init__(self, folder: Path, clients: int = FRONTS) -> None:
        self.requests: dict[int, list[str]] = {client: [] for client in range(clients)}
        self.aborted: list[int] = []
        self.limits: list[list[int]] = []
        self.silent = False
        self._folder = folder
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context, suppress(zmq.ContextTerminated):
            inputs, outputs = [], []
            for client in self.requests:
                given, output = addresses(self._folder, client)
                inputs.append(context.socket(zmq.DEALER))
                inputs[-1].setsockopt(zmq.IDENTITY, (0).to_bytes(2, "little"))
                inputs[-1].connect(given)
                inputs[-1].send(self.ready)
                outputs.append(context.socket(zmq.PUSH))
                outputs[-1].connect(output)
            while not self._ended:
                for client, socket in enumerate(inputs):
                    if socket.poll(5):
                        self._answer(client, socket.recv_multipart(), outputs)
            for socket in (*inputs, *outputs):
                socket.close(linger=0)

    def _answer(self, client: int, frames: list[bytes], outputs: list[Any]) -> None:
        if self.silent:
            return
        kind, *data = frames
        made = EngineCoreOutputs()
        if kind == EngineCoreRequestType.UTILITY.value:
            client, call, method, arguments = MsgpackDecoder().decode(data)
            result: Any = ("generate",)
            if method == vllm_plugin.MEASURED:
                result = vllm_plugin.measured(self, *arguments)
            elif method == vllm_plugin.THREAD_SECONDS:
                result = time.monotonic()
            elif method == vllm_plugin.LIMIT_STEPS:
                self.limits.append(arguments)
            elif method == "abort_client":
                self.aborted += arguments
                result = len(self.requests.get(arguments[0], ()))
            made.utility_output = UtilityOutput(call, result=UtilityResult(result))
        elif kind == EngineCoreRequestType.ADD.value:
            request = MsgpackDecoder(EngineCoreRequest).decode(data)
            assert request.client_index == client
            self.requests[client].append(request.request_id)
            count = request.sampling_params.max_tokens
            ends = count < ENDLESS
            tokens = [100] * (count if ends else 1)
            reason = FinishReason.LENGTH if ends else None
            made.outputs = [EngineCoreOutput(request.request_id, tokens, finish_reason=reason)]
            made.scheduler_stats = SchedulerStats(num_waiting_reqs=1, kv_cache_usage=0.5)
        else:
            return
        outputs[client].send_multipart(MsgpackEncoder().encode(made))


@pytest.fixture(scope="module")
def config(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    directory = tmp_path_factory.mktemp("fronts") / "tiny"
    tiny_model.make(directory, tokenizer_of=smollm2_directory)
    arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048}
    return ModelConfig(id="m", engine="vllm", source=str(directory), engine_args=arguments)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path)
    yield made
    made.end()


class Released:
    """Takes the place of what aborts the requests of a front."""

    def __init__(self) -> None:
        self.fronts: list[int] = []

    async def __call__(self, front: int) -> None:
        self.fronts.append(front)


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[tuple[EngineLink, Released]]:
    released = Released()
    made = EngineLink(FRONTS, Core.ready, released)
    await made.open(engine_socket(tmp_path))
    yield made, released
    made.close()


@pytest.fixture
async def ends() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def started(config: ModelConfig, folder: Path, index: int, ends: AsyncExitStack) -> VllmFront:
    engine = VllmFront(config, Front(folder=folder, index=index, count=FRONTS))
    ends.push_async_callback(engine.close)
    async with asyncio.timeout(120):
        await engine.start(lambda _: None)
    return engine


async def generate(engine: VllmFront, tokens: int) -> int:
    """The tokens of an answer."""
    request = GenerateRequest(text="Once upon a time")
    request.stopping.max_tokens = tokens
    used: list[int] = []

    def emit(output: str | GenerateResponse) -> None:
        if not isinstance(output, str) and output.HasField("usage"):
            used.append(output.usage.completion_tokens)

    await engine.generate(await engine.prepare(request, Terms(2048)), emit)
    return used[0]


@pytest.fixture
async def both(
    config: ModelConfig,
    core: Core,
    link: tuple[EngineLink, Released],
    tmp_path: Path,
    ends: AsyncExitStack,
) -> tuple[VllmFront, VllmFront]:
    """Both fronts, with the engine core started."""
    return await started(config, tmp_path, 0, ends), await started(config, tmp_path, 1, ends)


async def test_fronts_serve_end_and_start_again(
    config: ModelConfig,
    core: Core,
    link: tuple[EngineLink, Released],
    both: tuple[VllmFront, VllmFront],
    tmp_path: Path,
    ends: AsyncExitStack,
) -> None:
    first, second = both
    assert [await generate(engine, 5) for engine in (first, second)] == [5, 5]
    assert all(engine.health().alive for engine in (first, second))
    served = len(core.requests[1])
    # A call of the first front runs; the second front waits in the same engine.
    running = asyncio.create_task(generate(first, 1500))
    await eventually(lambda: first.health().running == 1)
    assert second.health().running == 0
    assert [engine.health().waiting for engine in (first, second)] == [1, 0]
    assert second.health().kv_cache.usage == 0.5
    await second.close()
    await eventually(lambda: link[1].fronts[-1] == 1)
    again = await started(config, tmp_path, 1, ends)
    assert await generate(again, 7) == 7
    # Only the first front has measured, and only once.
    ((step_tokens, _),) = core.limits
    assert {engine.clock.step_tokens for engine in (first, second, again)} == {step_tokens}
    assert {engine.clock.token_seconds for engine in (second, again)} == {first.clock.token_seconds}
    assert len(core.requests[1]) > served
    assert first.health().alive
    assert not running.done()
    # The end of the engine is the end of all.
    link[0].close()
    async with asyncio.timeout(10):
        with pytest.raises(EngineDeadError):
            await running
    await eventually(lambda: not first.health().alive and not again.health().alive, 10)


async def test_steps_that_another_front_is_told_of_count_as_progress(
    both: tuple[VllmFront, VllmFront],
) -> None:
    first, second = both
    running = asyncio.create_task(generate(first, 1500))
    await eventually(lambda: first.health().running == 1)
    await asyncio.sleep(0.3)
    assert first.health().last_step_age_seconds > 0.2
    began = time.monotonic()
    await generate(second, 3)
    assert first.health().last_step_age_seconds < time.monotonic() - began + 0.1
    first.clock.prefilling += 10_000
    first.clock.token_seconds = second.clock.token_seconds = 1.0
    assert second.clock.slow_step_seconds() == first.clock.slow_step_seconds() > 1000
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_front_waits_for_its_engine(
    config: ModelConfig, core: Core, tmp_path: Path, ends: AsyncExitStack
) -> None:
    said: list[str] = []
    engine = VllmFront(config, Front(folder=tmp_path, index=0, count=FRONTS))
    ends.push_async_callback(engine.close)
    start = asyncio.create_task(engine.start(said.append))
    await eventually(lambda: said == ["waiting for the engine"])
    link = EngineLink(FRONTS, Core.ready, Released())
    await link.open(engine_socket(tmp_path))
    async with asyncio.timeout(120):
        await start
    assert await generate(engine, 2) == 2
    link.close()


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Puts the thread in the place of what VllmCore starts; with its process, which sleeps."""
    made: dict[str, Any] = {}

    @contextmanager
    def launch(_config: Any, _executor: Any, stats: bool, ends: Any) -> Iterator[Any]:
        assert stats
        made["threads"] = os.environ.get("OMP_NUM_THREADS")
        assert [*zip(ends.inputs, ends.outputs, strict=True)] == [
            addresses(tmp_path, client) for client in range(FRONTS + 1)
        ]
        made["core"] = Core(tmp_path, FRONTS + 1)
        process = made["process"] = multiprocessing.get_context("spawn").Process(
            target=time.sleep, args=(600,), daemon=True
        )
        process.start()
        yield SimpleNamespace(
            engine_manager=SimpleNamespace(
                processes=[process], shutdown=lambda _seconds: process.kill()
            )
        )

    monkeypatch.setattr(vllm_core, "launch_core_engines", launch)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    monkeypatch.delenv("OMP_NUM_THREADS")
    yield made
    if made:
        made["core"].end()
        made["process"].kill()
        made["process"].join()


async def test_process_with_the_engine_aborts_what_a_front_leaves_and_ends_with_the_engine(
    config: ModelConfig, launched: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    core = VllmCore(replace(config, fronts=FRONTS, max_choices=1), tmp_path, None)
    run = asyncio.create_task(core.run())
    async with asyncio.timeout(60):
        link = await join(engine_socket(tmp_path), 1)
    assert link.ready == Core.ready
    assert launched["threads"] == str(cpu_plan.plan(cpu_plan.this_cpu()).threads)
    assert launched["core"].aborted == [0, 1]
    launched["core"].requests[1].append("left")
    link.close()
    await eventually(lambda: launched["core"].aborted == [0, 1, 1])
    await eventually(lambda: "aborted 1 requests of front 1" in caplog.messages)
    async with asyncio.timeout(5):
        await core.wait_left(60)  # No front is connected.
    link = await join(engine_socket(tmp_path), 0)
    leaving = asyncio.create_task(core.wait_left(60))
    await asyncio.sleep(0.1)
    assert not leaving.done()
    assert not run.done()
    launched["process"].kill()
    async with asyncio.timeout(10):
        await run
        await core.close()
        await link.ended()
        await leaving
    link.close()


async def test_process_with_the_engine_ends_when_the_engine_answers_no_more(
    config: ModelConfig,
    launched: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(vllm_core, "_ANSWER_SECONDS", 1.0)
    core = VllmCore(replace(config, fronts=FRONTS, max_choices=1), tmp_path, None)
    run = asyncio.create_task(core.run())
    async with asyncio.timeout(60):
        link = await join(engine_socket(tmp_path), 1)
    launched["core"].silent = True
    link.close()
    async with asyncio.timeout(10):
        await run
        await core.close()
    assert "the engine core has not answered for 1 s" in caplog.messages


async def test_stop_does_not_wait_for_an_engine_that_loads(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, loaded = threading.Event(), threading.Event()

    @contextmanager
    def launch(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(engine_manager=SimpleNamespace(shutdown=lambda _seconds: None))
        loading.set()
        loaded.wait(60)
        raise RuntimeError("the engine has ended")

    monkeypatch.setattr(vllm_core, "launch_core_engines", launch)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    core = VllmCore(replace(config, fronts=FRONTS, max_choices=1), tmp_path, None)
    run = asyncio.create_task(core.run())
    try:
        assert await asyncio.to_thread(loading.wait, 60)
        run.cancel()
        async with asyncio.timeout(10):
            await core.close()
    finally:
        loaded.set()


def test_prompts_are_timed_without_the_cache() -> None:
    requests = [*timed_requests(256, 2048, 49152), *timed_requests(256, 2048, 49152)]
    assert len({request.cache_salt for request in requests}) == len(requests)


def test_requests_of_one_client_are_aborted() -> None:
    owners = {"a": 1, "b": 0, "c": 1}
    requests = {
        name: SimpleNamespace(request_id=name, client_index=owner) for name, owner in owners.items()
    }
    aborted: list[str] = []
    core = SimpleNamespace(
        scheduler=SimpleNamespace(requests=requests), abort_requests=aborted.extend
    )
    assert vllm_plugin.abort_client(core, 1) == 2
    assert aborted == ["a", "c"]


async def test_engine_serves_only_its_own_fronts(
    link: tuple[EngineLink, Released], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for line in (b'{"front": 2}\n', b'{"front": -1}\n', b"GET / HTTP/1.1\n"):
        reader, writer = await asyncio.open_unix_connection(engine_socket(tmp_path))
        writer.write(line)
        assert await reader.read() == b""
        writer.close()
    assert link[1].fronts == []
    assert caplog.text.count("no front of this engine has connected") == 3
