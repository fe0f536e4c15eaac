"""The default models from the user's cache; the first run downloads and converts them."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.engines.base import TextEngine
from inference.server import InferenceServer
from launch.embedded import default_cache_directory, prepare_embedding_model, prepare_text_model
from tests.conftest import eventually

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "2",
    # Spinning threads would take a second for each token where there are few cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct, as vLLM loads it."""
    return prepare_text_model(default_cache_directory(), print)


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """all-MiniLM-L6-v2, as sentence-transformers loads it."""
    return prepare_embedding_model(default_cache_directory(), print)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(one_vllm: None, smollm2_directory: Path) -> AsyncIterator[TextEngine]:
    """A vLLM engine with a real model, shared by all tests of the session."""
    config = ModelConfig(
        id="smollm2",
        engine="vllm",
        source=str(smollm2_directory),
        tool_parser="hermes",
        allow_patterns=True,
        pattern_seconds=0.5,
        engine_args={
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            # A long prompt takes several steps, as on larger models.
            "max_num_batched_tokens": 128,
            "max_num_seqs": 32,
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and vLLM warn on import.
            from inference.engines.vllm_engine import VllmEngine

            started = VllmEngine(config)
            said: list[str] = []
            await started.start(said.append)
        assert said, "a start of half a minute must report its progress"
        yield started
        with warnings.catch_warnings():
            # vLLM leaves its sockets to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            await started.close()
            await started.close()
            assert not started.health().alive
            del started
            await asyncio.sleep(0.1)  # cancelled tasks end and release the sockets
            gc.collect()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def http(engine: TextEngine) -> AsyncIterator[ClientSession]:
    """An HTTP client of a real edge and a real server with the shared engine."""
    config = ModelConfig(id="smollm2", engine="scripted", allow_patterns=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.server.create_engine", lambda *_: engine)
        server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(config,)))
    server.registry.models[0].started = True
    await server.start()
    edge_config = EdgeConfig(port=0, upstreams=(f"127.0.0.1:{server.port}",), settle_seconds=0.0)
    async with serving(edge_config) as (edge, port):
        await eventually(edge.router.ready)
        async with ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "close", lambda: asyncio.sleep(0))  # other tests still use the engine
        await server.close()


@pytest.fixture
def dying_engine(engine: TextEngine) -> TextEngine:
    """The shared engine, for a test that kills it."""
    return engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves tests that kill the shared engine behind all tests that use it."""
    places = [i for i, item in enumerate(items) if "engine" in getattr(item, "fixturenames", ())]
    users = sorted((items[i] for i in places), key=lambda item: "dying_engine" in item.fixturenames)
    for place, item in zip(places, users, strict=True):
        items[place] = item
