"""No vLLM process is left after the inference process was killed with SIGKILL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

_SCRIPT = """
import asyncio, sys
from inference.config import ModelConfig
from inference.engines.vllm_engine import VllmEngine

async def main():
    arguments = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 512}
    engine = VllmEngine(
        ModelConfig(id="smollm2", engine="vllm", source=sys.argv[1], engine_args=arguments)
    )
    await engine.start(lambda text: None)
    print("READY", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_engine_core_ends_when_its_parent_is_killed(
    tmp_path: Path, smollm2_directory: Path
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(_SCRIPT)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "generated")])
    server = subprocess.Popen(
        [sys.executable, str(script), str(smollm2_directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
    )
    family: list[psutil.Process] = []
    try:
        assert server.stdout is not None
        assert any(line == "READY\n" for line in server.stdout), "the engine did not start"
        family = psutil.Process(server.pid).children(recursive=True)
        # The engine core is the child that holds the memory.
        cores = [process for process in family if process.memory_info().rss > 200 << 20]
        assert cores
        server.kill()
        server.wait()
        deadline = time.monotonic() + 30
        while left := [process.pid for process in cores if _lives(process)]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()
        for process in family:
            if process.is_running():
                process.kill()
        if server.stdout is not None:
            server.stdout.close()
