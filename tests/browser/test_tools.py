"""Tools on the page with two models: each gets the results of its own calls."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.test_chat import CHAT, answered, ask, streamed

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Models:
    """Answers of two models, one after the other, in place of the server's."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.sent: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in answers}

    async def __call__(self, route: Route) -> None:
        body = route.request.post_data_json
        self.sent[body["model"]].append(body["messages"])
        await self.answers[body["model"]].pop(0)(route)


def calls(city: str, identifier: str = "c1") -> Any:
    function = {"name": "weather", "arguments": f'{{"city":"{city}"}}'}
    call = {"index": 0, "id": identifier, "function": function}
    return streamed({"tool_calls": [call]}, finish="tool_calls")


def says(text: str) -> Any:
    return streamed({"content": text}, finish="stop")


def result(content: str, identifier: str = "c1") -> dict[str, str]:
    return {"role": "tool", "tool_call_id": identifier, "content": content}


async def compare(page: Page, models: Models) -> None:
    """Asks both models."""
    await page.route(CHAT, models)
    await page.get_by_role("button", name="Compare").click()
    await page.get_by_label("Second model").select_option("second")
    await ask(page, "hello")
    await answered(page, 2)


async def test_each_of_two_models_gets_the_results_of_its_own_calls(page: Page) -> None:
    # Ids that two models give may be the same.
    models = Models(
        writer=[calls("Suez"), says("Dry."), says("one")],
        second=[calls("Panama"), says("Wet."), says("two")],
    )
    await compare(page, models)
    await page.get_by_label("Result of weather for writer").fill("sunny")
    await page.get_by_label("Result of weather for second").fill("rain")
    await page.get_by_role("button", name="Send results").click()
    await answered(page, 4)
    await expect(page.get_by_role("button", name="Send results")).to_have_count(0)
    assert models.sent["writer"][1][2:] == [result("sunny")]
    assert models.sent["second"][1][2:] == [result("rain")]
    await ask(page, "more")
    await answered(page, 6)
    for name, content, text in (("writer", "sunny", "Dry."), ("second", "rain", "Wet.")):
        _, asked, *rest = models.sent[name][2]
        assert asked["tool_calls"][0]["id"] == "c1"
        assert rest == [
            result(content),
            {"role": "assistant", "content": text},
            {"role": "user", "content": "more"},
        ]


async def test_model_that_called_nothing_waits_for_the_next_message(page: Page) -> None:
    models = Models(
        writer=[says("No tool."), says("one")],
        second=[calls("Panama"), calls("Suez", "c2"), says("Done."), says("two")],
    )
    await compare(page, models)
    for number, content in enumerate(("rain", "sun"), 3):
        await page.get_by_label("Result of weather for second").fill(content)
        await page.get_by_role("button", name="Send results").click()
        await answered(page, number)
    # Its answers stay in its column, also after the page is loaded again.
    await page.reload()
    await page.locator("#history .title").click()
    last, first = page.locator(".answer").last, page.locator(".answer").nth(1)
    await expect(last.locator(".content")).to_have_text("Done.")
    assert (await last.bounding_box())["x"] == (await first.bounding_box())["x"]
    await ask(page, "more")
    await answered(page, 6)
    assert [each["role"] for each in models.sent["writer"][1]] == ["user", "assistant", "user"]
    second = models.sent["second"][3]
    assert [each for each in second if each["role"] == "tool"] == [
        result("rain"), result("sun", "c2"),
    ]  # fmt: skip
    assert second[-2:] == [
        {"role": "assistant", "content": "Done."}, {"role": "user", "content": "more"},
    ]  # fmt: skip


async def test_results_go_to_the_models_that_are_still_chosen(page: Page) -> None:
    models = Models(writer=[calls("Suez"), says("Dry.")], second=[calls("Panama")])
    await compare(page, models)
    await page.get_by_role("button", name="Compare").click()
    await page.get_by_label("Result of weather for writer").fill("sunny")
    await page.get_by_role("button", name="Send results").click()
    await expect(page.locator(".content").last).to_have_text("Dry.")
    assert models.sent["writer"][1][2:] == [result("sunny")]
    assert len(models.sent["second"]) == 1


async def test_tokens_that_came_together_have_no_rate(page: Page) -> None:
    parts = [{"content": f"w{number} "} for number in range(20)]
    await page.route(CHAT, streamed(*parts, finish="stop"))
    await ask(page, "hello")
    await answered(page)
    await expect(page.locator(".answer p.small")).to_contain_text("first token")
    await expect(page.locator(".answer p.small")).not_to_contain_text("tokens/s")
