"""The page at /docs in a real browser."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import OpenPage, Site
from tests.browser.test_page import PHONE, clean

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
async def test_docs_are_accessible(
    open_page: OpenPage, site: Site, scheme: str, phone: bool
) -> None:
    # The policy forbids the script of axe.
    options = {"color_scheme": scheme, "bypass_csp": True, **(PHONE if phone else {})}
    page = await open_page(f"{site.url}/docs", **options)
    await expect(page.locator("#deleteResponse .method")).to_have_text("DELETE")
    await clean(page, "docs")


async def test_docs_begin_on_the_first_screen_of_a_phone(open_page: OpenPage, site: Site) -> None:
    page = await open_page(f"{site.url}/docs", **PHONE)
    await expect(page.locator("article").first).to_be_visible()
    await expect(page.get_by_role("heading", level=1)).to_be_in_viewport()
    await page.get_by_role("link", name="The page for chats and images").click()
    await expect(page.locator("#chat")).to_be_visible()
