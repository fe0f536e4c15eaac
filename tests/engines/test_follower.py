"""The follower's end, with processes in the place of vLLM's workers: no model is loaded."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.config import ModelConfig
from inference.engines.node_link import HeadLink
from inference.engines.nodes import Nodes
from keys import ConfigError
from tests.conftest import eventually
from tests.contract.programs import fixed_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines import vllm_arguments, vllm_follower
    from inference.engines.vllm_follower import VllmFollower


def sleep_on(number: int) -> None:
    """A worker that does not end with SIGTERM."""
    signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


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
    config: ModelConfig, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., VllmFollower]:
    """Makes a follower whose executor has such workers; `seconds` is how long its start takes."""

    def make(seconds: float = 0.0) -> VllmFollower:
        def executor(_: Any, monitor_workers: bool) -> Any:
            assert not monitor_workers
            context = multiprocessing.get_context("spawn")
            workers = [
                context.Process(target=sleep_on, args=(signal.SIGTERM,), name=f"worker {number}")
                for number in range(2)
            ]
            for worker in workers:
                worker.start()
            time.sleep(seconds)
            return SimpleNamespace(workers=[SimpleNamespace(proc=worker) for worker in workers])

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


async def test_close_kills_workers_that_do_not_end(
    follower: Callable[..., VllmFollower], head: HeadLink
) -> None:
    made = follower()
    run = asyncio.create_task(made.run())
    await head.gather()
    await eventually(lambda: len(multiprocessing.active_children()) == 2)
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
    await asyncio.sleep(0.05)  # Workers begin at any time from now.
    run.cancel()
    async with asyncio.timeout(10):
        await made.close()
    assert multiprocessing.active_children() == []


async def test_follower_ends_with_one_of_its_workers(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> None:
    made = follower()
    run = asyncio.create_task(made.run())
    await head.gather()
    await eventually(lambda: len(multiprocessing.active_children()) == 2)
    next(child for child in multiprocessing.active_children() if child.name == "worker 1").kill()
    async with asyncio.timeout(10):
        await run
    assert "worker 1 has ended; so does this process" in caplog.messages
    await made.close()
    assert multiprocessing.active_children() == []


async def test_follower_ends_with_the_head(
    follower: Callable[..., VllmFollower], head: HeadLink, caplog: pytest.LogCaptureFixture
) -> None:
    made = follower()
    run = asyncio.create_task(made.run())
    await head.gather()
    await eventually(lambda: len(multiprocessing.active_children()) == 2)
    await head.close()
    async with asyncio.timeout(10):
        await run
        await made.close()
    assert "the head at 127.0.0.1 has ended; so does this process" in caplog.messages
    assert multiprocessing.active_children() == []


def test_follower_has_the_checks_of_the_head(config: ModelConfig, nodes: Nodes) -> None:
    (Path(config.source) / "modeling.py").write_text("")
    with pytest.raises(ConfigError, match=r"modeling\.py is code"):
        VllmFollower(config, nodes, 1)


def test_fingerprint_of_the_nodes_covers_arguments_and_files(config: ModelConfig) -> None:
    from msgspec.structs import replace

    first = vllm_arguments.shared_fingerprint(config)
    assert first == vllm_arguments.shared_fingerprint(replace(config, max_running=3))
    other = replace(config, engine_args={**config.engine_args, "max_model_len": 7})
    assert vllm_arguments.shared_fingerprint(other) != first
    (Path(config.source) / "model.safetensors").write_bytes(b"123")
    assert vllm_arguments.shared_fingerprint(config) != first
