"""Head and follower end when the other one ends; no model is loaded.

Processes that sleep are in the place of the follower's workers, and nothing in that of the head's.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from inference.config import ModelConfig
from inference.engines.base import EngineDeadError, EngineHealth
from inference.engines.node_link import FollowerLink, HeadLink, Hello, join
from inference.engines.nodes import Nodes
from keys import ConfigError
from tests.conftest import eventually
from tests.contract.programs import fixed_port
from tests.engines.machines import sleep_on

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines import vllm_arguments, vllm_follower
    from inference.engines.vllm_engine import VllmEngine
    from inference.engines.vllm_follower import VllmFollower
    from inference.engines.vllm_head import VllmHead


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    return ModelConfig(
        id="m",
        engine="vllm",
        source=str(tmp_path),
        engine_args={"tensor_parallel_size": 2, "nnodes": 2, "master_addr": "127.0.0.1"},
    )


@pytest.fixture
def nodes() -> Nodes:
    return Nodes(count=2, address="127.0.0.1", port=fixed_port())


@pytest.fixture
async def head(config: ModelConfig, nodes: Nodes) -> AsyncIterator[HeadLink]:
    link = HeadLink("m", nodes, vllm_arguments.shared_fingerprint(config))
    await link.open()
    yield link
    await link.close()


@pytest.fixture
def follower(
    config: ModelConfig,
    nodes: Nodes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., VllmFollower]:
    """Makes a follower whose executor has such workers, which begin after `seconds`."""
    caplog.set_level(logging.INFO)

    def make(seconds: float = 0.0) -> VllmFollower:
        def executor(_: Any, monitor_workers: bool) -> Any:
            assert not monitor_workers
            time.sleep(seconds)
            context = multiprocessing.get_context("spawn")
            workers = []
            for number in range(2):
                ready, ours = context.Pipe(duplex=False)
                worker = context.Process(
                    target=sleep_on, args=(ours,), name=f"worker {number}", daemon=True
                )
                worker.start()
                ours.close()
                ready.recv()  # Raises once the worker has ended, as vLLM does.
                workers.append(SimpleNamespace(proc=worker))
            return SimpleNamespace(workers=workers)

        made = VllmFollower(config, nodes, 1)
        vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(nnodes=2))
        monkeypatch.setattr(
            type(made._arguments), "create_engine_config", lambda *_, **__: vllm_config
        )
        monkeypatch.setattr(vllm_follower, "MultiprocExecutor", executor)
        monkeypatch.setattr(vllm_follower, "_WORKER_SECONDS", 0.5)
        for variable in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "VLLM_WORKER_MULTIPROC_METHOD"):
            monkeypatch.setenv(variable, "spawn")
        return made

    return make


async def started(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> tuple[VllmFollower, asyncio.Task[None]]:
    """A follower whose workers are up, and its run."""
    made = follower()
    run = asyncio.create_task(made.run())
    await head.gather()
    await eventually(lambda: "ready: has 1/2 of the model" in caplog.messages)
    return made, run


async def test_close_kills_workers_that_do_not_end(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> None:
    made, run = await started(follower, head, caplog)
    run.cancel()
    async with asyncio.timeout(10):
        await made.close()
        await head.lost.wait()
    assert multiprocessing.active_children() == []


async def test_close_during_the_start_leaves_no_worker(
    follower: Callable[..., VllmFollower], head: HeadLink
) -> None:
    made = follower(seconds=1.0)
    run = asyncio.create_task(made.run())
    await head.gather()
    await asyncio.sleep(0.2)  # Workers begin later.
    run.cancel()
    async with asyncio.timeout(10):
        await made.close()
    assert multiprocessing.active_children() == []


async def test_follower_ends_with_one_of_its_workers(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> None:
    made, run = await started(follower, head, caplog)
    next(child for child in multiprocessing.active_children() if child.name == "worker 1").kill()
    async with asyncio.timeout(10):
        await run
    assert "worker 1 has ended; so does this process" in caplog.messages
    await made.close()
    assert multiprocessing.active_children() == []


async def test_follower_ends_with_the_head(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> None:
    made, run = await started(follower, head, caplog)
    await head.close()
    async with asyncio.timeout(10):
        await run
        await made.close()
    assert "the head at 127.0.0.1 has ended; so does this process" in caplog.messages
    assert multiprocessing.active_children() == []


@pytest.fixture
async def engine(
    config: ModelConfig, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[VllmHead]:
    """A head whose own part of the model is well."""
    monkeypatch.setattr(VllmEngine, "health", lambda _: EngineHealth(True, 0, 0.0, 0))
    monkeypatch.setattr(VllmEngine, "start", lambda *_: asyncio.sleep(0))
    for variable in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(variable, "x")
    head = VllmHead(config, nodes)
    yield head
    await head.close()


async def joined(engine: VllmHead, config: ModelConfig, nodes: Nodes) -> FollowerLink:
    return await join(nodes, Hello(1, vllm_arguments.shared_fingerprint(config)))


async def test_idle_head_is_dead_once_a_follower_has_ended(
    engine: VllmHead, config: ModelConfig, nodes: Nodes
) -> None:
    said: list[str] = []
    start = asyncio.create_task(engine.start(said.append))
    await eventually(lambda: said)
    assert said == [
        f"waiting at 127.0.0.1 port {nodes.port} for follower 1 (isthmus inference --follow RANK)"
    ]
    link = await joined(engine, config, nodes)
    await start
    assert engine.health().alive
    link.close()
    await eventually(lambda: not engine.health().alive, 2)


async def test_follower_that_ends_during_the_start_ends_the_start(
    engine: VllmHead, config: ModelConfig, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VllmEngine, "start", lambda *_: asyncio.sleep(600))
    start = asyncio.create_task(engine.start(lambda _: None))
    link = await joined(engine, config, nodes)
    link.close()
    with pytest.raises(EngineDeadError, match="a follower ended during the start"):
        async with asyncio.timeout(2):
            await start


async def test_followers_end_with_the_head(
    engine: VllmHead, config: ModelConfig, nodes: Nodes
) -> None:
    start = asyncio.create_task(engine.start(lambda _: None))
    link = await joined(engine, config, nodes)
    await start
    await engine.close()
    async with asyncio.timeout(2):
        await link.ended()
    link.close()


async def test_head_checks_its_arguments_before_it_waits(config: ModelConfig, nodes: Nodes) -> None:
    head = VllmHead(replace(config, engine_args={**config.engine_args, "no_such": 1}), nodes)
    with pytest.raises(ConfigError, match="no_such: vLLM knows no such argument"):
        await head.start(lambda _: None)
    await head.close()


def test_follower_has_the_checks_of_the_head(config: ModelConfig, nodes: Nodes) -> None:
    (Path(config.source) / "modeling.py").write_text("")
    with pytest.raises(ConfigError, match=r"modeling\.py is code"):
        VllmFollower(config, nodes, 1)


def test_fingerprint_of_the_nodes_covers_arguments_and_files(config: ModelConfig) -> None:
    first = vllm_arguments.shared_fingerprint(config)
    assert first == vllm_arguments.shared_fingerprint(replace(config, max_running=3))
    other = replace(config, engine_args={**config.engine_args, "max_model_len": 7})
    assert vllm_arguments.shared_fingerprint(other) != first
    (Path(config.source) / "model.safetensors").write_bytes(b"123")
    assert vllm_arguments.shared_fingerprint(config) != first
