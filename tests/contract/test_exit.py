"""An inference process ends when it should, even if a step of its engine never does."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from keys.settings import is_host_and_port

# `python -m inference` with an engine whose steps run in a thread, which cannot be interrupted.
_PROGRAM = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from contract import process
from inference import health
from inference.__main__ import main
from inference.engines.diffusion_engine import DaemonThread, _finished
from inference.engines.scripted import ScriptedEngine

health.WEDGED_SECONDS = 0.3
process.EXIT_SECONDS = 1.0
stuck, arguments = sys.argv[1], sys.argv[2:]
thread = DaemonThread("step") if stuck == "step" else ThreadPoolExecutor(1)
generate = ScriptedEngine.generate

async def stuck_step(self, prepared, emit):
    self._running += 1
    await _finished(asyncio.get_running_loop().run_in_executor(thread, time.sleep, 1000))

async def stuck_load(self, report):
    await asyncio.get_running_loop().run_in_executor(thread, time.sleep, 1000)

if stuck == "step":
    ScriptedEngine.generate = stuck_step
else:
    ScriptedEngine.start = stuck_load
sys.exit(main(arguments))
"""


@asynccontextmanager
async def process(
    stuck: str, tmp_path: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process, and its address once it listens."""
    config = tmp_path / "models.toml"
    config.write_text('[[models]]\nid = "m"\nengine = "scripted"\nslow_step_seconds = 0.3\n')
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, stuck, "--config", str(config)),
        *("--listen", "127.0.0.1:0", "--drain-seconds", "0.1"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert started.stderr is not None
    try:
        async with asyncio.timeout(20):
            address = ""
            while not is_host_and_port(address):
                address = (await started.stderr.readline()).decode().split()[-1]
        yield started, address
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


async def test_process_ends_although_a_step_of_its_wedged_engine_never_does(
    tmp_path: Path,
) -> None:
    async with (
        process("step", tmp_path) as (started, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        request = GenerateRequest(model="m", text=json.dumps({"tokens": 1}))
        call = InferenceServiceStub(channel).Generate(request, wait_for_ready=True)
        await call.read()
        async with asyncio.timeout(15):
            assert await started.wait() == 1
        call.cancel()


@pytest.mark.parametrize(("signals", "status"), [(1, 0), (2, 130)])
async def test_process_ends_although_its_model_still_loads(
    tmp_path: Path, signals: int, status: int
) -> None:
    async with process("load", tmp_path) as (started, _):
        for _ in range(signals):
            started.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
        async with asyncio.timeout(15):
            assert await started.wait() == status
