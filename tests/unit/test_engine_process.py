"""The process with the engine of several fronts: when it ends, without an engine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import process
from inference import engine_process
from inference.config import ModelConfig
from keys import ConfigError


class Core:
    """Takes the place of the engine core; its fronts never leave."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.leaving = asyncio.Event()
        self.closed = False

    async def run(self) -> None:
        await self.ended.wait()

    async def wait_left(self, seconds: float) -> None:
        assert seconds > 600
        self.leaving.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.parametrize("stops", [True, False])
async def test_ends_with_the_engine(
    stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, stop = Core(), asyncio.Event()
    monkeypatch.setattr(engine_process, "create_core", lambda *_: core)
    monkeypatch.setattr(process, "stop_event", lambda: stop)
    config = ModelConfig(id="m", engine="vllm", source="s")
    keeping = asyncio.create_task(
        engine_process.keep_until_stopped(config, tmp_path, drain_seconds=600, otlp_endpoint=None)
    )
    if stops:
        stop.set()
        await core.leaving.wait()
        assert not core.closed
    core.ended.set()
    async with asyncio.timeout(10):
        assert await keeping == (0 if stops else 1)
    assert core.closed


async def test_endpoint_that_is_no_url_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    config = ModelConfig(id="m", engine="vllm", source="s")
    with pytest.raises(ConfigError, match="otlp_endpoint: 'nowhere' is not like"):
        await engine_process.keep_until_stopped(config, tmp_path, 600, "nowhere")
