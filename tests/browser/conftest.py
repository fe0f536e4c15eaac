"""A real headless Chromium in front of a whole stack with scripted engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import AliasConfig, ModelConfig
from inference.server import InferenceServer
from keys import create_key
from tests.browser.chromium import Chromium, NoChromiumError, chromium
from tests.conftest import eventually, running_server

TEXT = """# An isthmus

A narrow strip of land with water on *both* sides. **Panama** is the best known; the canal of
`Suez` was opened in 1869.

1. It joins two larger masses of land.
2. It keeps two seas apart:
   - ships take the long way,
   - or a canal.

| Isthmus | Width | Canal |
|---|--:|:-:|
| Panama | 50 km | 1914 |
| Suez | 125 km | 1869 |

```python
def width(name):
    return {"panama": 50, "suez": 125}[name]  # km
```

> A canal turns an isthmus into a strait.
"""
MODELS = (
    ModelConfig(
        id="writer",
        engine="scripted",
        aliases=(AliasConfig(name="gpt-4"),),
        engine_args={
            "text": TEXT,
            "tokens": 1_000_000,
            "step_seconds": 0.002,
            "context_length": 1_000_000,
            "prefix_cache": True,
        },
    ),
    ModelConfig(
        id="second",
        engine="scripted",
        engine_args={"tokens": 30, "step_seconds": 0.002, "vision": True},
    ),
    ModelConfig(id="limited", engine="scripted", requests_per_minute=1, engine_args={"tokens": 2}),
    ModelConfig(id="vectors", engine="scripted-embedding"),
    ModelConfig(id="painter", engine="scripted-image", engine_args={"step_seconds": 0.05}),
)
# Seconds that the page may take for anything.
PATIENCE = 20.0
expect.set_options(timeout=PATIENCE * 1000)


@dataclass(frozen=True)
class Site:
    """One inference service with two edges; `keyed_url` is that of the one that requires `key`."""

    url: str
    keyed_url: str
    key: str
    server: InferenceServer

    def running(self) -> int:
        """Running requests of all models."""
        return sum(model.engine.health().running for model in self.server.registry.models)


@dataclass
class Visit:
    """Problems that the browser reports for the pages of a test."""

    problems: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", lambda message: self.note(message.type, message.text))

    def note(self, kind: str, text: str) -> None:
        # The browser writes such a line for each response of 400 and more.
        if not text.startswith("Failed to load resource: the server responded with a status of"):
            self.problems.append(f"{kind}: {text}")


OpenPage = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
def installed() -> Chromium:
    try:
        return chromium()
    except NoChromiumError as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(installed: Chromium) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=installed.executable, env={**installed.environment} or None
        )
        yield running
        await running.close()


@asynccontextmanager
async def running_edge(server: InferenceServer, keys: Path | None = None) -> AsyncIterator[str]:
    """An edge before the server; yields its URL."""
    config = EdgeConfig(
        port=0, upstreams=(f"127.0.0.1:{server.port}",), keys_file=keys, settle_seconds=0.0
    )
    async with serving(config) as (edge, port):
        await eventually(edge.router.ready)
        yield f"http://127.0.0.1:{port}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    _, key = create_key(keys, "someone")
    async with AsyncExitStack() as ends:
        server = await ends.enter_async_context(running_server(*MODELS))
        url = await ends.enter_async_context(running_edge(server))
        keyed_url = await ends.enter_async_context(running_edge(server, keys))
        yield Site(url, keyed_url, key, server)


@pytest.fixture
def visit() -> Iterator[Visit]:
    visit = Visit()
    yield visit
    assert visit.problems == []


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(site: Site, browser: Browser, visit: Visit) -> AsyncIterator[OpenPage]:
    """Opens pages in contexts of their own, which end with the test; violations of CSP count."""
    async with AsyncExitStack() as ends:

        async def open_page(url: str = "", routes: Any = None, **options: Any) -> Page:
            settings = {"viewport": {"width": 1280, "height": 820}} | options
            context = await browser.new_context(**settings)
            ends.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE * 1000)
            page = await context.new_page()
            visit.watch(page)
            for path, handler in (routes or {}).items():
                await page.route(path, handler)
            await page.goto(url or site.url)
            return page

        yield open_page


@pytest_asyncio.fixture(loop_scope="session")
async def page(open_page: OpenPage) -> Page:
    """The page, once it has the list of models."""
    page = await open_page()
    await expect(page.locator("#chat")).to_be_visible()
    return page
