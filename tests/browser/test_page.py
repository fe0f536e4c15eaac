"""The page as a whole: its size, its keys, its looks, and who can use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import OpenPage, Site, Visit
from tests.browser.test_chat import answered, ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEB = Path(__file__).parents[2] / "edge" / "web"
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


async def test_page_loads_only_its_own_files(open_page: OpenPage, site: Site) -> None:
    seen: list[str] = []

    async def note(route: Any) -> None:
        seen.append(route.request.url)
        await route.continue_()

    page = await open_page(routes={"**/*": note})
    await expect(page.locator("#chat")).to_be_visible()
    files = {f"{site.url}/page/{path.name}" for path in (WEB / "page").iterdir()}
    apis = {f"{site.url}/{path}" for path in ("", "v1/models", "openapi.json")}
    assert set(seen) == files | apis


async def test_violations_of_the_policy_are_noticed(page: Page, visit: Visit) -> None:
    await page.evaluate("fetch('https://example.org/').catch(() => {})")
    await page.evaluate("document.body.append(Object.assign(new Image(), {src: '//example.org'}))")
    await page.wait_for_timeout(200)
    assert len([text for text in visit.problems if "Content Security Policy" in text]) >= 2
    visit.problems.clear()


async def test_key_is_asked_for_once_and_kept_for_the_tab(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.keyed_url)
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Key").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_label("Key")).to_have_value("")
    await dialog.get_by_label("Key").fill(site.key)
    await page.keyboard.press("Enter")
    await expect(page.locator("#chat")).to_be_visible()
    await expect(dialog).to_have_count(0)
    await ask(page, "hello")
    await answered(page)
    await page.reload()
    await expect(page.locator("#chat")).to_be_visible()
    await expect(dialog).to_have_count(0)
    stored = await page.evaluate("[JSON.stringify(localStorage), sessionStorage['isthmus-key']]")
    assert site.key not in stored[0]
    assert stored[1] == site.key
    other = await page.context.new_page()
    await other.goto(site.keyed_url)
    await expect(other.get_by_role("dialog")).to_be_visible()


async def test_page_without_the_key_says_what_failed(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.keyed_url)
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("alert").first).to_contain_text("HTTP 401")
    await page.get_by_role("button", name="Key", exact=True).click()
    await page.get_by_role("dialog").get_by_label("Key").fill(site.key)
    await page.keyboard.press("Enter")
    await expect(page.locator("#chat")).to_be_visible()


async def test_keyboard_reaches_everything_and_shows_where_it_is(page: Page) -> None:
    await ask(page, json.dumps({"text": "```\ncode\n```"}))
    await answered(page)
    await page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1")
    await page.evaluate("document.body.focus()")
    reached = []
    for _ in range(80):
        await page.keyboard.press("Tab")
        focused = await page.evaluate(
            """() => {
                const node = document.activeElement;
                const { outlineStyle } = getComputedStyle(node);
                return [node === document.body, node.id || node.name || node.textContent,
                        outlineStyle !== "none", node.tagName];
            }"""
        )
        if focused[0]:
            break
        assert focused[2], focused
        reached.append(focused[1])
    visible = await page.evaluate(
        """() => [...document.querySelectorAll(
            "a, button, input, select, textarea, summary, [tabindex='0']")]
            .filter((node) => node.checkVisibility() && !node.disabled)
            .map((node) => node.id || node.name || node.textContent)"""
    )
    assert set(visible) - {"", *reached} == set()
    assert len(reached) > 30


async def test_focus_returns_when_a_dialog_closes(page: Page) -> None:
    await ask(page, json.dumps({"text": "one"}))
    await answered(page)
    for name in ("Code", "Events", "Delete all", "Key"):
        button = page.get_by_role("button", name=name, exact=True)
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.evaluate("document.activeElement.closest('dialog') !== null")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(button).to_be_focused()


async def test_chat_by_keyboard_alone(page: Page) -> None:
    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type("hello")
    await page.keyboard.press("Control+Enter")
    await answered(page)
    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type('{"tokens": 4000, "step_seconds": 0.01, "text": null}')
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Send")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator(".content").last).to_contain_text("w1")
    await page.keyboard.press("Escape")
    await answered(page, 2)
    await page.get_by_role("button", name="Regenerate").first.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#conversation")).to_be_focused()
    await answered(page)


async def test_screen_readers_hear_what_happens(page: Page) -> None:
    said: list[str] = []
    await page.expose_function("heard", lambda text: said.append(text))
    await page.evaluate(
        """() => new MutationObserver(() => {
            window.heard(document.querySelector("#status").textContent);
        }).observe(document.querySelector("[role=status]"), { childList: true })"""
    )
    await ask(page, json.dumps({"text": "one two"}))
    await answered(page)
    assert said[0] == "Waiting for writer."
    assert said[-1].startswith("Complete: first token")
    assert len(said) == 2
    await expect(page.get_by_role("heading", name="writer")).to_have_count(1)


async def fits(page: Page) -> bool:
    """Whether nothing is wider than the window."""
    return await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_phone_has_two_rows_above_the_conversation(open_page: OpenPage) -> None:
    page = await open_page(**PHONE)
    await expect(page.locator("#chat")).to_be_visible()
    top = (await page.locator("#conversation").bounding_box())["y"]
    assert top < 100
    await ask(page, "hello")
    await answered(page)
    assert await fits(page)
    for name, panel in (("History", "side"), ("Parameters", "settings")):
        await page.get_by_role("button", name=name, exact=True).tap()
        await expect(page.locator(f"#{panel}")).to_be_in_viewport()
        await page.locator(f"#{panel}").locator("button, input, textarea").first.focus()
        await page.keyboard.press("Escape")
        await expect(page.locator(f"#{panel}")).to_be_hidden()
        await expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
    await page.get_by_role("button", name="History", exact=True).tap()
    await page.locator("#history .title").tap()
    await expect(page.locator("#side")).to_be_hidden()
    await page.get_by_role("button", name="Compare").tap()
    assert await fits(page)
    message = await page.locator("#message").bounding_box()
    status = await page.get_by_role("status").bounding_box()
    assert message["y"] + message["height"] <= status["y"]
    for name in ("Images", "Embeddings"):
        await page.get_by_role("button", name=name).tap()
        assert await fits(page)


async def test_nothing_moves_by_itself(open_page: OpenPage) -> None:
    page = await open_page(reduced_motion="reduce")
    await ask(page, "hello")
    await expect(page.locator(".content h3")).to_be_visible()
    assert await page.evaluate("document.getAnimations().length") == 0
    await answered(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
async def test_page_is_accessible(open_page: OpenPage, scheme: str, phone: bool) -> None:
    # The policy forbids the script of axe, and only this test does without it.
    options = {"color_scheme": scheme, "bypass_csp": True, **(PHONE if phone else {})}
    page = await open_page(**options)
    await expect(page.locator("#chat")).to_be_visible()
    paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 23, 26)") == (scheme == "dark")
    await clean(page, "welcome")
    await ask(page, "What is an isthmus?")
    await answered(page)
    await ask(page, json.dumps({"fail": "refuse"}))
    await answered(page, 2)
    await clean(page, "answers")
    for panel in ("History", "Parameters"):
        if phone:
            await page.get_by_role("button", name=panel, exact=True).click()
            await clean(page, panel)
            await page.get_by_role("button", name=panel, exact=True).dispatch_event("click")
    await page.get_by_role("button", name="Code", exact=True).last.click()
    await clean(page, "dialog")
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Images").click()
    await page.get_by_label("Prompt").fill("a boat")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Download")).to_be_visible()
    await clean(page, "images")
    await page.get_by_role("button", name="Embeddings").click()
    await page.get_by_role("button", name="Compare").last.click()
    await expect(page.locator("#matrix td")).to_have_count(16)
    await clean(page, "embeddings")


async def clean(page: Page, where: str) -> None:
    results = await Axe().run(page)
    found = [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]])
        for rule in results.response["violations"]
    ]
    assert found == [], where


async def test_copies_without_a_clipboard(browser: Browser, page: Page) -> None:
    # As over plain HTTP from another machine.
    await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await ask(page, json.dumps({"text": "one"}))
    await answered(page)
    await page.get_by_role("button", name="Code", exact=True).click()
    await page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("status")).to_have_text("Copied.")
    await expect(page.get_by_role("dialog")).to_be_visible()
