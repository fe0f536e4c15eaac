"""Answers are shown as text and plain elements, whatever a model writes."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from tests.browser.test_chat import answered, ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACTIVE = "script, iframe, object, embed, img, svg, style, form, link, meta, base"
HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "handler": "<img src=x onerror='window.hacked = 1'> <svg onload=window.hacked=1>",
    "javascript": "[a](javascript:window.hacked=1) [b](JaVaScRiPt:window.hacked=1)",
    "hidden javascript": "[a](\x01javascript:window.hacked=1) [b](java&#115;cript:window.hacked=1)",
    "data": "[a](data:text/html,<script>window.hacked=1</script>) ![b](data:text/html;base64,PHA+)",
    "image": "![x](https://example.org/pixel.png) ![y](javascript:window.hacked=1)",
    "attribute": '[a](https://example.org/"onmouseover="window.hacked=1)',
    "fence name": '```"><script>window.hacked=1</script>\ncode\n```',
    "table": "| <script>hacked=1</script> | b |\n|---|---|\n| <img src=x onerror=hacked=1> | c |",
    "frame": "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe><base href=//example.org>",
}
# Texts that make naive expressions and renderers slow.
HUGE = {
    "asterisks": "*" * 50_000,
    "open emphasis": "**a *b _c ~~d " * 4_000,
    "underscores": "_a" * 30_000,
    "backticks": "".join("`" * (i % 40) + "a" for i in range(4_000)),
    "brackets": "[" * 50_000,
    "links": "[a](" * 20_000,
    "images": "![a](b" * 10_000,
    "quotes": ">" * 20_000 + "a",
    "nested quotes": "\n".join("> " * i + "a" for i in range(300)),
    "nested list": "\n".join("  " * i + "- a" for i in range(500)),
    "long list": "- a\n" * 5_000,
    "spaces": "a" + " " * 100_000 + "b\n" + " " * 50_000 + "\n# " + " " * 50_000 + "#x",
    "table of spaces": "a|b\n" + " " * 100_000 + "x",
    "wide table": "|" * 3_000 + "\n" + "|-" * 3_000 + "|\n",
    "fences": "```\n" * 5_001,
    "fence line": "```" + "a" * 100_000 + "`",
    "rules": "- " * 30_000 + "x",
    "addresses": "https://" * 10_000,
    "escapes": "\\" * 50_000,
    "one word": "x" * 200_000,
}


async def show(page: Page, text: str) -> None:
    """Lets the model answer the text; the engine sends it in a few steps."""
    script = {"text": text, "tokens_per_step": 1 + len(text.split()) // 5, "step_seconds": 0.001}
    await page.fill("#message", json.dumps(script))
    await page.get_by_role("button", name="Send").click()
    await answered(page)


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_answer_runs_nothing_and_loads_nothing(page: Page, name: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await show(page, HOSTILE[name])
    content = page.locator(".content")
    assert await content.locator(ACTIVE).count() == 0
    targets = await content.locator("a").evaluate_all("links => links.map(({ href }) => href)")
    assert all(target.startswith("https://example.org/") for target in targets)
    attributes = await content.evaluate(
        "root => [...root.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
    )
    allowed = {"class", "href", "rel", "target", "tabindex", "role", "aria-label", "type", "start"}
    assert set(attributes) <= allowed
    assert await page.evaluate("window.hacked") is None
    # The browser may request the page's icon at any time.
    own = ("/v1/chat/completions", "/page/icon.svg")
    assert [url for url in requests if not url.endswith(own)] == []
    shown = await content.inner_text()
    assert "hacked" in shown or "example.org" in HOSTILE[name]


@pytest.mark.parametrize("name", HUGE)
async def test_huge_answer_does_not_hang_the_page(page: Page, name: str) -> None:
    await page.evaluate(
        """() => {
            window.longest = 0;
            new PerformanceObserver((list) => {
                for (const { duration } of list.getEntries()) {
                    window.longest = Math.max(window.longest, duration);
                }
            }).observe({ type: "longtask" });
        }"""
    )
    await show(page, HUGE[name])
    # Milliseconds; without bounds these take minutes.
    assert await page.evaluate("window.longest") < 5_000
    depth = await page.locator(".content").evaluate(
        "function depth(node) { return 1 + Math.max(0, ...[...node.children].map(depth)); }"
    )
    assert depth < 60


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a *b* **c** `d` ~~e~~", "<p>a <em>b</em> <strong>c</strong> <code>d</code> <s>e</s></p>"),
        ("***both***", "<p><strong><em>both</em></strong></p>"),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        (r"\*no\*", "<p>*no*</p>"),
        ("``a ` b``", "<p><code>a ` b</code></p>"),
        ("# One\n\ntext\n\n###### Six #", "<h3>One</h3><p>text</p><h6>Six</h6>"),
        ("1. a\n2. b\n\n   more\n\nafter", "<ol><li>a</li><li>b<p>more</p></li></ol><p>after</p>"),
        ("3. three", '<ol start="3"><li>three</li></ol>'),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("---", "<hr>"),
        ("a  \nb", "<p>a<br>b</p>"),
    ],
)
async def test_markdown_becomes_elements(page: Page, text: str, html: str) -> None:
    await show(page, text)
    assert await page.locator(".content").inner_html() == html


async def test_links_open_elsewhere_and_tell_nothing(page: Page) -> None:
    await show(page, "[a](https://example.org/x_(y)) https://example.org/z. <mailto:a@b.c>")
    links = page.locator(".content a")
    await expect(links.first).to_have_attribute("href", "https://example.org/x_(y)")
    await expect(links.last).to_have_attribute("href", "https://example.org/z")
    for link in await links.all():
        await expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
        await expect(link).to_have_attribute("target", "_blank")


async def test_unclosed_fence_is_code_while_it_streams(page: Page) -> None:
    await ask(page, json.dumps({"text": "```python\nx = 1\n# not a heading"}))
    await answered(page)
    await expect(page.locator(".content figcaption")).to_contain_text("python")
    await expect(page.locator(".content pre")).to_have_text("x = 1\n# not a heading")
    await page.locator(".content").get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("status")).to_have_text("Copied.")
