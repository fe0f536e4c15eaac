"""Makes the pictures of the page in docs/images: python -m tests.browser.screenshots [folder]."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Page, async_playwright, expect

from tests.browser.chromium import chromium
from tests.browser.conftest import MODELS, running_edge
from tests.browser.test_chat import answered, ask
from tests.conftest import running_server

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 760},
    "color_scheme": "dark",
    "device_scale_factor": 2,
    "is_mobile": True,
}


async def chat(page: Page) -> None:
    await ask(page, "What is an isthmus?")
    await answered(page)


async def compare(page: Page) -> None:
    await page.get_by_role("button", name="Compare").click()
    await page.get_by_label("Second model").select_option("second")
    await ask(page, "What is an isthmus?")
    await answered(page, 2)


async def code(page: Page) -> None:
    await chat(page)
    await page.get_by_role("button", name="Code", exact=True).click()
    await page.get_by_role("button", name="grpcurl").click()


async def failure(page: Page) -> None:
    await ask(page, json.dumps({"fail": "refuse"}))
    await answered(page)


async def images(page: Page) -> None:
    await page.get_by_role("button", name="Images").click()
    await page.get_by_label("Number").fill("2")
    await page.get_by_label("Prompt").fill("a red heart")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Download")).to_have_count(2)


async def embeddings(page: Page) -> None:
    await page.get_by_role("button", name="Embeddings").click()
    await page.get_by_role("button", name="Compare").last.click()
    await expect(page.locator("#matrix td")).to_have_count(16)


PICTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "chat": (chat, DESKTOP),
    "compare": (compare, DESKTOP | {"color_scheme": "dark"}),
    "code": (code, DESKTOP),
    "failure": (failure, DESKTOP),
    "images": (images, DESKTOP),
    "embeddings": (embeddings, DESKTOP | {"color_scheme": "dark"}),
    "phone": (chat, PHONE),
}


async def make(folder: Path) -> None:
    installed = chromium()
    async with AsyncExitStack() as ends:
        server = await ends.enter_async_context(running_server(*MODELS))
        url = await ends.enter_async_context(running_edge(server))
        playwright = await ends.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=installed.executable, env={**installed.environment} or None
        )
        ends.push_async_callback(browser.close)
        for name, (prepare, options) in PICTURES.items():
            page = await browser.new_page(**options)
            await page.goto(url)
            await expect(page.locator("#chat")).to_be_visible()
            await prepare(page)
            path = folder / f"page-{name}.png"
            await page.screenshot(path=path)
            await page.close()
            # A palette makes the file a third as large.
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
