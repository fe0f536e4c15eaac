"""Conversations stay in the browser: stored, opened, exported, imported, deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.test_chat import answered, ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = {
    "model": "writer",
    "content": "a",
    "reasoning": "",
    "calls": [],
    "figures": "",
    "error": None,
}
GOOD = {
    "id": "1",
    "title": "Old talk",
    "models": ["writer"],
    "values": {"temperature": "0.5"},
    "turns": [{"text": "hi", "images": [], "answers": [ANSWER]}],
}
IMAGE = "https://example.org/x.png"
HOSTILE = [
    "no JSON",
    "null",
    "[]",
    "{}",
    {"conversations": {}},
    {"conversations": [None]},
    {"conversations": [{**GOOD, "id": 1}]},
    {"conversations": [{**GOOD, "title": {"toString": 1}}]},
    {"conversations": [{**GOOD, "values": None}]},
    {"conversations": [{**GOOD, "values": {"temperature": {}}}]},
    {"conversations": [{**GOOD, "turns": [{"text": "x", "images": [IMAGE], "answers": []}]}]},
    {"conversations": [{**GOOD, "turns": [{"text": "x", "images": [], "answers": [{}]}]}]},
    {"conversations": [{**GOOD, "turns": [{"results": [{}], "answers": []}]}]},
    {"conversations": [GOOD, {**GOOD, "turns": "none"}]},
    {
        "conversations": [
            {
                **GOOD,
                "turns": [{"text": "x", "images": [], "answers": [{**ANSWER, "calls": [None]}]}],
            }
        ]
    },
]


async def talk(page: Page, *texts: str) -> None:
    """One conversation for each text, whose answer is the text."""
    for text in texts:
        await page.get_by_role("button", name="New chat").click()
        await ask(page, json.dumps({"text": text}))
        await answered(page)


def exported(content: Any) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content)
    return {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}


async def test_conversations_outlive_the_page_and_can_be_opened(page: Page) -> None:
    await talk(page, "first", "second")
    await page.reload()
    await expect(page.locator("#history li")).to_have_count(2)
    await expect(page.locator("#welcome")).to_be_visible()
    await page.locator("#history").get_by_text("first").click()
    await expect(page.locator(".content")).to_have_text("first")
    await ask(page, json.dumps({"text": "third"}))
    await answered(page, 2)
    await expect(page.locator("#history li")).to_have_count(2)
    await expect(page.locator("#history li").first).to_contain_text("first")


async def test_history_is_in_local_storage_only(page: Page) -> None:
    await talk(page, "first")
    state = await page.evaluate(
        """async () => ({
            local: Object.keys(localStorage),
            session: Object.keys(sessionStorage),
            cookies: document.cookie,
            databases: (await indexedDB.databases()).length,
            caches: (await caches.keys()).length,
        })"""
    )
    assert state == {
        "local": ["isthmus-conversations"],
        "session": [],
        "cookies": "",
        "databases": 0,
        "caches": 0,
    }


async def test_conversation_is_stored_before_its_answer_ends(page: Page) -> None:
    await ask(page, json.dumps({"text": None, "tokens": 4000, "step_seconds": 0.01}))
    await expect(page.locator(".content")).to_contain_text("w1")
    await page.reload()
    await expect(page.locator("#history li")).to_have_count(1)


async def test_running_conversation_can_be_deleted(page: Page) -> None:
    await ask(page, json.dumps({"text": None, "tokens": 4000, "step_seconds": 0.01}))
    await expect(page.locator(".content")).to_contain_text("w1")
    await page.get_by_role("button", name="Delete {").click()
    await expect(page.locator("#history li")).to_have_count(0)
    await expect(page.get_by_role("status")).to_contain_text("Complete: ")
    await expect(page.locator("#history li")).to_have_count(0)
    assert await page.evaluate("localStorage.getItem('isthmus-conversations')") == "[]"


async def test_export_can_be_imported_after_all_are_deleted(page: Page, tmp_path: Path) -> None:
    await talk(page, "first", "second")
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Export").click()
    saved = await download.value
    assert saved.suggested_filename == "isthmus-conversations.json"
    await saved.save_as(tmp_path / "saved.json")
    await page.get_by_role("button", name="Delete all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    await expect(page.locator("#history li")).to_have_count(2)
    await page.get_by_role("button", name="Delete all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.locator("#history li")).to_have_count(0)
    for _ in range(2):
        async with page.expect_file_chooser() as chooser:
            await page.get_by_role("button", name="Import").click()
        await (await chooser.value).set_files(tmp_path / "saved.json")
        await expect(page.get_by_role("status")).to_have_text("2 conversations imported.")
        await expect(page.locator("#history li")).to_have_count(2)
    await page.locator("#history").get_by_text("second").click()
    await expect(page.locator(".content")).to_have_text("second")


async def test_imported_conversation_brings_its_parameters(page: Page) -> None:
    await page.set_input_files("#import-file", exported({"conversations": [GOOD]}))
    await page.get_by_role("button", name="Old talk", exact=True).click()
    await expect(page.get_by_label("Temperature")).to_have_value("0.5")
    await expect(page.locator(".content")).to_have_text("a")


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
async def test_broken_or_hostile_import_is_refused(page: Page, content: Any) -> None:
    await talk(page, "mine")
    before = await page.evaluate("JSON.stringify(localStorage)")
    await page.set_input_files("#import-file", exported(content))
    await expect(page.get_by_role("status")).to_have_text(
        "This file has no conversations of this page."
    )
    assert await page.evaluate("JSON.stringify(localStorage)") == before
    await expect(page.locator("#history li")).to_have_count(1)


async def test_broken_storage_does_not_break_the_page(page: Page) -> None:
    await page.evaluate("localStorage.setItem('isthmus-conversations', '[{}]')")
    await page.reload()
    await talk(page, "mine")
    await expect(page.locator("#history li")).to_have_count(1)


async def test_oldest_conversations_go_when_the_storage_is_full(page: Page) -> None:
    await talk(page, "y" * 600)
    # Leaves room for 1500 characters more.
    await page.evaluate(
        """() => {
            let filler = "";
            for (let size = 1_000_000; size >= 1; size /= 10) {
                try {
                    for (;;) {
                        localStorage.setItem("filler", filler + "x".repeat(size));
                        filler += "x".repeat(size);
                    }
                } catch {}
            }
            localStorage.setItem("filler", filler.slice(1_500));
        }"""
    )
    await talk(page, "x" * 1000)
    await expect(page.locator("#history li")).to_have_count(2)
    stored = await page.evaluate("JSON.parse(localStorage['isthmus-conversations']).length")
    assert stored == 1
