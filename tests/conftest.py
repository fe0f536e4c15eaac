"""A whole stack in one process: real HTTP, real gRPC, scripted engines."""

from __future__ import annotations

import asyncio
import functools
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import create_autospec

import grpc
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pytest_rerunfailures import StatusDB
from xdist.scheduler import LoadScopeScheduling

from contract.process import GC_THRESHOLDS
from edge.app import serving
from edge.config import EdgeConfig
from edge.state import Edge
from inference.config import AliasConfig, ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub

TEXT = ModelConfig(
    id="scripted",
    engine="scripted",
    aliases=(
        AliasConfig(name="gpt-4", context_length=8192),
        AliasConfig(name="tiny", context_length=8),
        AliasConfig(name="org/name"),
    ),
)
EMBEDDING = ModelConfig(
    id="scripted-embedding",
    engine="scripted-embedding",
    aliases=(AliasConfig(name="ada", context_length=6),),
)
IMAGE = ModelConfig(id="scripted-image", engine="scripted-image")

# Without it each client loads the public CA certificates, for 80 ms; no test with it uses TLS.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# Paths below tests/ whose tests need vLLM, torch, sentence-transformers or diffusers ("engine"),
# start the real stack ("stack"), install clients into environments of their own ("clients"), or
# need playwright and a Chromium ("browser").
# All other tests run in the light environment.
MARKED = {
    # First, because one of its files is in the folder of the engines.
    "clients": ("clients", "engines/test_vllm_smg.py"),
    "engine": (
        "engines",
        "unit/test_collected_answers.py",
        "unit/test_proto_fields.py",
        "unit/test_vllm_arguments.py",
        "unit/test_vllm_progress.py",
        "unit/test_vllm_translation.py",
    ),
    "stack": ("stack",),
    "browser": ("browser",),
}
# Beginnings of the paths of tests that start vLLM. A second vLLM at the same time would take as
# much memory again, and the same cores.
STARTS_VLLM = ("tests/engines/test_vllm_", "tests/stack/")


@functools.cache
def marker_of(path: Path) -> str | None:
    """The marker in MARKED of a file or folder, or None."""
    here = Path(__file__).parent
    for marker, places in MARKED.items():
        if any(path.is_relative_to(here / place) for place in places):
            return marker
    return None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file or folder of which -m selects no test is not imported: it may need other packages."""
    if not (expression := config.option.markexpr):
        return None
    here = Path(__file__).parent
    markers = {marker_of(collection_path)} | {
        marker
        for marker, places in MARKED.items()
        for place in places
        if (here / place).is_relative_to(collection_path)
    }
    try:
        selected = any(
            eval(expression, {}, {name: name == marker for name in MARKED}) for marker in markers
        )
    except NameError:  # A marker of single tests.
        return None
    return None if selected else True


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keeps pytest-rerunfailures from counting in the main process which test ended its process.

    It asks over TCP before each test, and waits 40 ms for a delayed acknowledgement. Only what
    missed a bound of time runs again, not a test that ends its process.
    """
    if hasattr(config, "workerinput"):
        config.failures_db.sock.close()
        config.failures_db = StatusDB()


def pytest_itemcollected(item: pytest.Item) -> None:
    if marker := marker_of(item.path):
        item.add_marker(marker)
    if "one_vllm" in getattr(item, "fixturenames", ()) and not starts_vllm(item.nodeid):
        raise pytest.UsageError(f"{item.nodeid} starts vLLM, but its file is not in STARTS_VLLM")


def starts_vllm(nodeid: str) -> bool:
    return nodeid.startswith(STARTS_VLLM)


class OneVllm(LoadScopeScheduling):
    """Two processes: one runs all tests that start vLLM, the other one all other tests.

    The marker xdist_group has no effect with pytest 9.2 (pytest-xdist's issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return "vllm" if starts_vllm(nodeid) else "others"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneVllm | None:
    return OneVllm(config, log) if config.getvalue("dist") == "loadscope" else None


@dataclass(frozen=True)
class Stack:
    """A running edge and inference server, with clients of both."""

    url: str
    edge: Edge
    server: InferenceServer
    http: ClientSession
    openai: AsyncOpenAI
    channel: grpc.aio.Channel

    @property
    def stub(self) -> InferenceServiceStub:
        return InferenceServiceStub(self.channel)

    @property
    def engine(self) -> Any:
        return self.server.registry.models[0].engine


StartStack = Callable[..., Awaitable[Stack]]


async def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits until the condition holds; raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def one_vllm() -> None:
    """For fixtures that start vLLM; STARTS_VLLM has to name the tests that use them."""


@pytest.fixture(scope="session", autouse=True)
def _collect_garbage_as_a_server_does() -> Iterator[None]:
    """Freezes all imported objects once, and keeps the servers of the tests from doing so.

    Each server would traverse every object of pytest and the libraries, for 0.2 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contract.process.gc", create_autospec(gc))
        yield
    gc.unfreeze()


@asynccontextmanager
async def running_server(
    *models: ModelConfig,
    port: int = 0,
    keys: Path | None = None,
    **settings: Any,
) -> AsyncIterator[InferenceServer]:
    """A started inference server whose models are loaded."""
    config = ServerConfig(listen=f"127.0.0.1:{port}", models=models, keys_file=keys, **settings)
    server = InferenceServer(config)
    await server.start()
    await server.load()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture(params=["session", "generate"])
def transport(request: pytest.FixtureRequest) -> str:
    """The edge's transport to the service; a test runs once over each unless it overrides this."""
    return str(request.param)


@pytest.fixture
async def start_stack(transport: str) -> AsyncIterator[StartStack]:
    """Starts stacks that end with the test; `server` goes to ServerConfig, `edge` to EdgeConfig."""
    async with AsyncExitStack() as ends:

        async def start(
            *models: ModelConfig,
            keys: Path | None = None,
            key: str = "none",
            server_keys: Path | None = None,
            server: Mapping[str, Any] = MappingProxyType({}),
            **edge: Any,
        ) -> Stack:
            service = await ends.enter_async_context(
                running_server(*(models or (TEXT, EMBEDDING)), keys=server_keys, **server)
            )
            config = EdgeConfig(
                port=0,
                upstreams=(f"127.0.0.1:{service.port}",),
                transport=transport,
                keys_file=keys,
                settle_seconds=0.0,
                **edge,
            )
            running, port = await ends.enter_async_context(serving(config))
            await eventually(running.router.ready)
            url = f"http://127.0.0.1:{port}"
            http = await ends.enter_async_context(
                ClientSession(url, headers={"authorization": f"Bearer {key}"})
            )
            client = AsyncOpenAI(
                base_url=f"{url}/v1",
                api_key=key,
                max_retries=0,
                http_client=DefaultAsyncHttpx2Client(verify=NO_CERTIFICATES),
            )
            await ends.enter_async_context(client)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.port}")
            ends.push_async_callback(channel.close)
            return Stack(url, running, service, http, client, channel)

        yield start


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    """The default stack: one text model with aliases and one embedding model."""
    return await start_stack()
