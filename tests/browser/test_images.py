"""Images and embeddings on the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Site
from tests.conftest import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

IMAGES = "**/v1/images/generations"


async def generate(page: Page, prompt: str, **fields: str) -> None:
    await page.get_by_role("button", name="Images").click()
    for label, value in fields.items():
        await page.get_by_label(label, exact=True).fill(value)
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_label("Prompt").press("Control+Enter")


async def test_image_shows_previews_then_can_be_downloaded(page: Page) -> None:
    await generate(page, "a red heart", Steps="40", Seed="42")
    await expect(page.get_by_role("progressbar")).to_be_visible()
    await expect(page.get_by_alt_text("Preview of a red heart")).to_be_visible()
    await expect(page.get_by_alt_text("a red heart", exact=True)).to_be_visible()
    await expect(page.get_by_role("progressbar")).to_have_count(0)
    await expect(page.locator("figcaption").first).to_contain_text("seed 42")
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download").click()
    saved = await download.value
    assert saved.suggested_filename == "42.png"
    assert (await saved.path()).read_bytes().startswith(b"\x89PNG")
    await page.get_by_role("button", name="Events").click()
    events = await page.locator("dialog pre").inner_text()
    assert "event: image_generation.partial_image" in events
    assert "event: image_generation.completed" in events
    assert len(events) < 10_000


async def test_seed_of_an_image_makes_it_again(page: Page) -> None:
    await generate(page, "a boat")
    await page.get_by_role("button", name="Reuse seed").click()
    await generate(page, "a boat")
    await expect(page.get_by_role("button", name="Download")).to_have_count(2)
    again, first = await page.get_by_alt_text("a boat", exact=True).all()
    assert await again.get_attribute("src") == await first.get_attribute("src")


async def test_several_images_each_have_a_seed(page: Page) -> None:
    await generate(page, "a boat", Number="2", Seed="5")
    await expect(page.get_by_role("button", name="Download")).to_have_count(2)
    captions = await page.locator("figcaption").all_inner_texts()
    assert [caption.split()[1] for caption in captions] == ["5", "6"]


async def test_image_can_be_stopped(page: Page, site: Site) -> None:
    await generate(page, json.dumps({"step_seconds": 0.2}), Steps="50")
    await eventually(lambda: site.running() == 1)
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("status")).to_have_text("Stopped.")
    await eventually(lambda: site.running() == 0)
    await expect(page.get_by_role("button", name="Generate")).to_be_visible()


async def test_refused_image_shows_the_parameter(page: Page) -> None:
    await generate(page, "a boat", Size="1x")
    await expect(page.get_by_role("alert").last).to_contain_text("HTTP 400")
    await expect(page.get_by_role("alert").last).to_contain_text("parameter size")


async def test_texts_become_a_matrix_of_similarities(page: Page) -> None:
    await page.get_by_role("button", name="Embeddings").click()
    await page.get_by_label("Texts").fill("one\n\ntwo\none")
    async with page.expect_request("**/v1/embeddings") as sent:
        await page.get_by_label("Texts").press("Control+Enter")
    asked: Any = (await sent.value).post_data_json
    assert asked == {"model": "vectors", "input": ["one", "two", "one"]}
    await expect(page.locator("#matrix td")).to_have_count(9)
    cells = await page.locator("#matrix td").all_inner_texts()
    assert cells[0] == cells[2] == cells[4] == cells[8] == "1.00"
    assert cells[1] == cells[3] == cells[5] == cells[7] != "1.00"
    shades = await page.locator("#matrix td").evaluate_all(
        "cells => cells.map((cell) => getComputedStyle(cell).backgroundColor)"
    )
    assert shades[0] == shades[4] != shades[1]
    await expect(page.locator("#matrix p")).to_have_text("3 vectors of 8 · 3 tokens")


async def test_failed_embedding_is_shown(page: Page) -> None:
    async def refuse(route: Any) -> None:
        error = {"message": "Too long.", "code": "context_length_exceeded"}
        await route.fulfill(status=400, json={"error": error}, headers={"x-request-id": "req_1"})

    await page.route("**/v1/embeddings", refuse)
    await page.get_by_role("button", name="Embeddings").click()
    await page.get_by_role("button", name="Compare").last.click()
    await expect(page.locator("#matrix")).to_contain_text("Too long.")
    await expect(page.locator("#matrix")).to_contain_text("context_length_exceeded · request req_1")
