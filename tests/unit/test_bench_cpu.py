"""The loads and the table of `bench.cpu`. Its measurements are not tested."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench import cpu, engine_load
from bench.engine_load import EngineLoad, LoadError, Sizes
from bench.subject import Running, Source

SIZES = Sizes({1: 3, 4: 2}, {60: 2}, 80, 2)


@asynccontextmanager
async def model_server(
    lost_tokens: int = 0, text: str = "word "
) -> AsyncIterator[tuple[Running, list[dict[str, Any]]]]:
    """A server whose responses have the requested tokens less `lost_tokens`, each with a text."""
    bodies: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        tokens = bodies[-1]["max_tokens"] - lost_tokens
        for event in (
            *({"choices": [{"delta": {"content": text}}]} for _ in range(max(tokens, 1))),
            {"choices": [], "usage": {"completion_tokens": tokens}},
        ):
            await response.write(b"data: %b\n\n" % json.dumps(event).encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    async with TestServer(app) as server:
        yield Running(f"http://{server.host}:{server.port}", "m", {}), bodies


async def test_every_row_of_the_table_is_measured() -> None:
    async with model_server() as (running, bodies):
        load = EngineLoad(running, 0)
        await load.run(SIZES)
        figures = load.figures
    measured = {figure for figure, _, _ in engine_load.rows(SIZES)}
    assert figures.keys() == measured - {"start_s"}
    assert all(value > 0 for value in figures.values())
    # A first response, 1 + 4 streams, 2 prompts of 60 words, 2 chats alone, 2 beside a prompt.
    assert [body["max_tokens"] for body in bodies] == [4, 3, 2, 2, 2, 2, 1, 1, 8, 8, 1, 8, 8]
    words = [len(body["messages"][0]["content"].split()) for body in bodies]
    assert words[6:8] == [60, 60]
    assert words[10] == 80
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert len(set(prompts)) == len(prompts), "no prompt is found in a cache"


async def test_tokens_without_text_are_timed() -> None:
    async with model_server(text="") as (running, _):
        load = EngineLoad(running, 0)
        await load.run(SIZES)
    assert load.figures["prompt_60"] > 0


async def test_figures_before_a_failure_are_kept() -> None:
    class Failing:
        name = "failing"

        @contextmanager
        def start(self, source: Source) -> Iterator[Running]:
            yield Running("http://127.0.0.1:1", "m", {}, start_seconds=3.0)

    result = await asyncio.to_thread(cpu.measured, Failing(), SIZES, 0)
    assert result["figures"] == {"start_s": 3.0}
    assert "refused" in result["error"] or "Connect" in result["error"]


async def test_response_with_other_tokens_fails_the_run() -> None:
    async with model_server(lost_tokens=1) as (running, _):
        with pytest.raises(LoadError, match="3 tokens for 4"):
            await EngineLoad(running, 0).run(SIZES)


def test_table_has_medians_and_a_dash_for_what_failed() -> None:
    runs = [
        *({"subject": "isthmus", "figures": {"streams_1": speed}} for speed in (20.0, 30.0, 70.0)),
        {"subject": "other", "figures": {}, "error": "it ended"},
    ]
    table = cpu.rendered(runs, SIZES).splitlines()
    assert table[0] == "| | isthmus | other |"
    assert table[2] == "| 1 stream, tokens/s | 30 | - |"


def test_steps_are_those_that_isthmus_has_chosen(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert cpu.logged_steps(log) == (512, 128)
    log.write_text("1,024 prompt tokens a second: steps of 256 tokens, a long prompt takes 64 or\n")
    assert cpu.logged_steps(log) == (256, 64)
