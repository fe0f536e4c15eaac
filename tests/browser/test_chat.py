"""Chats on the page: streaming, stopping, regenerating, editing, comparing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from playwright.async_api import Page, Request, expect

from tests.browser.conftest import OpenPage, Site
from tests.conftest import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "**/v1/chat/completions"
SLOW = json.dumps({"tokens": 4000, "step_seconds": 0.01, "text": None})
# A PNG of one pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)


async def ask(page: Page, text: str) -> None:
    await page.fill("#message", text)
    await page.press("#message", "Control+Enter")


async def answered(page: Page, count: int = 1) -> None:
    """Waits until that many answers have ended."""
    await expect(page.get_by_role("button", name="Regenerate")).to_have_count(count)
    await expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def streamed(*deltas: dict[str, Any], finish: str) -> Any:
    """A handler of requests that answers with a recorded stream."""
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    async def handle(route: Any) -> None:
        await route.fulfill(body=body, content_type="text/event-stream")

    return handle


async def test_answer_streams_and_shows_its_figures(page: Page) -> None:
    await ask(page, "What is an isthmus?")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    answer = page.locator(".answer")
    await expect(answer.locator("h3")).to_have_text("An isthmus")
    assert await page.get_by_role("button", name="Regenerate").count() == 0
    await answered(page)
    await expect(answer.locator("td").nth(1)).to_have_class("right")
    await expect(answer.locator("ol > li > ul > li")).to_have_count(2)
    await expect(answer.locator(".code pre")).to_have_text(
        'def width(name):\n    return {"panama": 50, "suez": 125}[name]  # km'
    )
    figures = answer.locator("p.small")
    await expect(figures).to_contain_text("first token")
    await expect(figures).to_contain_text("4 tokens in, ")
    await expect(figures).to_contain_text("stop")
    await expect(page.get_by_role("status")).to_contain_text("Complete: first token")
    await expect(page.locator("#message")).to_be_focused()


async def test_answer_that_takes_its_time_has_a_rate(page: Page) -> None:
    await ask(page, json.dumps({"tokens": 500, "text": None}))
    await answered(page)
    await expect(page.locator(".answer p.small")).to_contain_text("tokens/s")


async def test_cached_tokens_are_shown(page: Page) -> None:
    await page.get_by_label("Max tokens").fill("2")
    for count in (1, 2):
        await ask(page, "word " * 40)
        await answered(page, count)
    await expect(page.locator(".answer p.small").last).to_contain_text("cached)")


async def test_escape_stops_the_answer_and_the_engine(page: Page, site: Site) -> None:
    await ask(page, SLOW)
    await expect(page.locator(".content")).to_contain_text("w3")
    assert site.running() == 1
    await page.keyboard.press("Escape")
    await answered(page)
    await expect(page.locator(".answer p.small")).to_contain_text("stopped")
    await eventually(lambda: site.running() == 0)


async def test_button_stops_the_answer(page: Page) -> None:
    await ask(page, SLOW)
    await expect(page.locator(".content")).to_contain_text("w3")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".answer p.small")).to_contain_text("stopped")


async def test_regenerate_replaces_the_answer_and_drops_what_follows(page: Page) -> None:
    for count in (1, 2):
        await ask(page, json.dumps({"text": f"answer {count}"}))
        await answered(page, count)
    await page.get_by_role("button", name="Regenerate").first.click()
    await answered(page)
    await expect(page.locator(".content")).to_have_text("answer 1")
    await expect(page.locator(".sent")).to_have_count(1)


async def test_edited_message_replaces_what_follows(page: Page) -> None:
    for count in (1, 2):
        await ask(page, json.dumps({"text": f"answer {count}"}))
        await answered(page, count)
    await page.get_by_role("button", name="Edit").first.click()
    await expect(page.locator("#message")).to_be_focused()
    await expect(page.locator("#message")).to_have_value('{"text": "answer 1"}')
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#message")).to_have_value("")
    await expect(page.locator(".sent")).to_have_count(2)
    await page.get_by_role("button", name="Edit").first.click()
    async with page.expect_request(CHAT) as sent:
        await ask(page, json.dumps({"text": "edited"}))
    assert [m["content"] for m in body(await sent.value)["messages"]] == ['{"text": "edited"}']
    await answered(page)
    await expect(page.locator(".content")).to_have_text("edited")


def body(request: Request) -> dict[str, Any]:
    sent: dict[str, Any] = request.post_data_json
    return sent


async def test_second_message_has_the_first_ones_before_it(page: Page) -> None:
    await ask(page, json.dumps({"text": "one"}))
    await answered(page)
    async with page.expect_request(CHAT) as sent:
        await ask(page, "two")
    assert body(await sent.value)["messages"] == [
        {"role": "user", "content": '{"text": "one"}'},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
    ]
    await answered(page, 2)


async def test_two_models_answer_side_by_side(page: Page, site: Site) -> None:
    await page.get_by_role("button", name="Compare").click()
    await expect(page.get_by_label("Second model")).not_to_have_value("writer")
    await page.get_by_label("Second model").select_option("second")
    await ask(page, "hello")
    await answered(page, 2)
    left, right = page.locator(".answer").first, page.locator(".answer").last
    await expect(left.locator("h2")).to_have_text("writer")
    await expect(right.locator("h2")).to_have_text("second")
    assert (await left.bounding_box())["y"] == (await right.bounding_box())["y"]

    await right.get_by_role("button", name="Regenerate").click()
    await answered(page, 2)
    await expect(left.locator("h3")).to_have_text("An isthmus")

    await page.get_by_role("button", name="Edit").click()
    await ask(page, json.dumps({"tokens": 4000, "step_seconds": 0.01, "text": None}))
    await expect(left.locator(".content")).to_contain_text("w2")
    await expect(right.locator(".content")).to_contain_text("w2")
    await page.get_by_role("button", name="Stop").click()
    await answered(page, 2)
    for answer in (left, right):
        await expect(answer.locator("p.small")).to_contain_text("stopped")
    await eventually(lambda: site.running() == 0)


async def test_empty_parameters_are_left_out_and_given_ones_are_sent(page: Page) -> None:
    assert await page.get_by_label("Temperature").get_attribute("placeholder") == "1"
    async with page.expect_request(CHAT) as sent:
        await ask(page, "hello")
    assert sorted(body(await sent.value)) == ["messages", "model", "stream", "stream_options"]
    await answered(page)
    await page.get_by_label("System message").fill("Be short.")
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Max tokens").fill("3")
    await page.get_by_label("Stop sequences").fill("a\nb c")
    await page.get_by_label("Response format").select_option("json_schema")
    await page.get_by_label("JSON schema").fill('{"type": "object"}')
    async with page.expect_request(CHAT) as sent:
        await ask(page, "again")
    given = body(await sent.value)
    assert given["messages"][0] == {"role": "system", "content": "Be short."}
    assert given["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "response", "schema": {"type": "object"}},
    }
    chosen = {name: given[name] for name in ("temperature", "max_completion_tokens", "stop")}
    assert chosen == {"temperature": 0.5, "max_completion_tokens": 3, "stop": ["a", "b c"]}


@pytest.mark.parametrize(
    ("label", "value"),
    [("Tools, a JSON array", "{}"), ("Tools, a JSON array", "[oops"), ("Temperature", "3")],
)
async def test_parameter_that_cannot_be_sent_is_not(page: Page, label: str, value: str) -> None:
    await page.get_by_role("button", name="Parameters").click()
    await page.get_by_label(label).evaluate("(field, value) => { field.value = value; }", value)
    await ask(page, "hello")
    await expect(page.get_by_label(label)).to_be_focused()
    await expect(page.locator(".sent")).to_have_count(0)
    await expect(page.locator("#message")).to_have_value("hello")


async def test_failure_shows_message_code_and_request_id(page: Page) -> None:
    await ask(page, json.dumps({"fail": "refuse"}))
    error = page.locator(".answer .error")
    await expect(error).to_contain_text("The script refuses.")
    await expect(error).to_contain_text("HTTP 400 · invalid_value · parameter messages · request")
    await error.get_by_role("button", name="Copy id").click()
    await expect(page.get_by_role("status")).to_have_text("Copied.")
    await answered(page)


async def test_failure_after_the_first_tokens_keeps_them(page: Page) -> None:
    await ask(page, json.dumps({"fail": "mid", "text": None}))
    await expect(page.locator(".answer .error")).to_contain_text("request req_")
    await expect(page.locator(".content")).to_contain_text("w0 w1")


async def test_model_that_is_gone_and_spent_allowance_are_named(page: Page) -> None:
    await page.locator("#model").select_option("limited")
    await page.evaluate("document.querySelector('#model').selectedOptions[0].text = 'gone'")
    await page.locator("#model").dispatch_event("change")
    await ask(page, "hello")
    await expect(page.locator(".answer .error")).to_contain_text("HTTP 404 · model_not_found")
    await page.get_by_role("button", name="New chat").click()
    await page.evaluate("document.querySelector('#model').selectedOptions[0].text = 'limited'")
    await page.locator("#model").dispatch_event("change")
    for count in (1, 2):
        await ask(page, "hello")
        await answered(page, count)
    error = page.locator(".answer .error")
    await expect(error).to_contain_text("HTTP 429 · rate_limit_exceeded · retry after")


async def test_server_that_cannot_be_reached_is_named(page: Page, visit: Any) -> None:
    await page.context.set_offline(True)
    await ask(page, "hello")
    await expect(page.locator(".answer .error")).to_contain_text("The server cannot be reached")
    assert [problem for problem in visit.problems if "ERR_INTERNET_DISCONNECTED" in problem]
    visit.problems.clear()


async def test_reasoning_is_folded_and_goes_back(page: Page) -> None:
    thinking = streamed({"reasoning": "First, "}, {"content": "42"}, finish="stop")
    await page.route(CHAT, thinking)
    await ask(page, "hello")
    await answered(page)
    await expect(page.locator(".thought")).to_be_hidden()
    await page.get_by_text("Reasoning", exact=True).click()
    await expect(page.locator(".thought")).to_have_text("First, ")
    async with page.expect_request(CHAT) as sent:
        await ask(page, "more")
    assert body(await sent.value)["messages"][1]["reasoning"] == "First, "


async def test_tool_calls_are_shown_and_their_results_sent(page: Page) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"city":"Suez"}'}}
    calling = streamed({"tool_calls": [call]}, {"tool_calls": [more]}, finish="tool_calls")
    await page.route(CHAT, calling, times=1)
    await ask(page, "hello")
    await expect(page.locator(".call strong")).to_have_text("Calls weather")
    await expect(page.locator(".call pre")).to_have_text('{\n  "city": "Suez"\n}')
    await page.get_by_label("Result of weather").fill("sunny")
    async with page.expect_request(CHAT) as sent:
        await page.get_by_role("button", name="Send results").click()
    _, asked, result = body(await sent.value)["messages"]
    function = {"name": "weather", "arguments": '{"city":"Suez"}'}
    assert asked["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    await answered(page, 2)


async def test_json_answer_is_indented(page: Page) -> None:
    await ask(page, json.dumps({"text": '{"a":[1,2]}'}))
    await answered(page)
    await expect(page.locator(".content .code pre")).to_have_text(
        json.dumps({"a": [1, 2]}, indent=2)
    )


async def test_pictures_go_to_models_that_see(page: Page, tmp_path: Any) -> None:
    await expect(page.get_by_role("button", name="Picture")).to_be_hidden()
    await page.locator("#model").select_option("second")
    file = {"name": "dot.png", "mimeType": "image/png", "buffer": base64.b64decode(PNG)}
    await page.set_input_files("#picture", [file, file])
    await page.get_by_role("button", name="Remove").first.click()
    async with page.expect_request(CHAT) as sent:
        await ask(page, "What is it?")
    text, picture = body(await sent.value)["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert picture["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    await answered(page)
    await expect(page.get_by_alt_text("Picture 1")).to_be_visible()
    await expect(page.locator(".answer .error")).to_have_count(0)


async def test_inspector_shows_the_raw_events(page: Page) -> None:
    await ask(page, json.dumps({"text": "one two"}))
    await answered(page)
    await page.get_by_role("button", name="Events").click()
    shown = await page.locator("dialog pre").text_content()
    assert shown.count("chat.completion.chunk") >= 3
    assert " ms  data: {" in shown
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Events")).to_be_focused()


async def test_page_without_a_model_says_so(open_page: OpenPage) -> None:
    async def none(route: Any) -> None:
        await route.fulfill(json={"object": "list", "data": []})

    page = await open_page(routes={"**/v1/models": none})
    await expect(page.get_by_role("alert")).to_contain_text("No model is served yet.")
