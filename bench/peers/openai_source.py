"""An OpenAI-like server without a model, for gateways whose upstreams use HTTP.

    python -m bench.peers.openai_source PORT TOKENS STEP_SECONDS TOKENS_PER_STEP

The events of a response are made once. Their words differ, because LiteLLM takes 100 equal chunks
in a row for a loop and ends the response.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import uvloop
from aiohttp import web

from bench.peers.steps import Steps, grouped, until_terminated

MODEL: Final = "smollm2-135m-instruct"
_PROMPT_TOKENS: Final = 16
_CREATED: Final = 1_700_000_000


class Source:
    """The HTTP handlers. Every response has the same tokens; requests are not read for them."""

    def __init__(self, tokens: int, step_seconds: float, tokens_per_step: int) -> None:
        self._steps = Steps(step_seconds)
        words = [f" w{position % 1000:03}" for position in range(tokens)]
        self._usage = {
            "prompt_tokens": _PROMPT_TOKENS,
            "completion_tokens": tokens,
            "total_tokens": _PROMPT_TOKENS + tokens,
        }
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        response = {**_head("chat.completion"), "choices": [choice], "usage": self._usage}
        self._plain = json.dumps(response).encode()
        self._first = _event(_chunk({"role": "assistant", "content": ""}))
        pieces = grouped(words, tokens_per_step)
        self._middle = [_event(_chunk({"content": "".join(piece)})) for piece in pieces]
        self._last = _event(_chunk({}, "length"))
        self._end = b"data: [DONE]\n\n"

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await request.json()
        if not body.get("stream"):
            for _ in self._middle if self._steps.paced else ():
                await self._steps.next()
            return web.Response(body=self._plain, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first = self._first
        for event in self._middle:
            await self._steps.next()
            await response.write(first + event)
            first = b""
        last = self._last + (_event(self._usage_chunk()) if wants_usage(body) else b"")
        await response.write(last + self._end)
        return response

    async def models(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /v1/models."""
        model = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "bench"}
        return web.json_response({"object": "list", "data": [model]})

    async def health(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /health, which routers ask."""
        return web.Response()

    def _usage_chunk(self) -> dict[str, Any]:
        return {**_head("chat.completion.chunk"), "choices": [], "usage": self._usage}


def wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-bench", "object": kind, "created": _CREATED, "model": MODEL}


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_head("chat.completion.chunk"), "choices": [choice]}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


async def serve(application: web.Application, port: int) -> None:
    """Serves until SIGTERM."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1).start()
    await until_terminated()
    await runner.cleanup()


if __name__ == "__main__":
    _port, _tokens, _step_seconds, _tokens_per_step = sys.argv[1:]
    _source = Source(int(_tokens), float(_step_seconds), int(_tokens_per_step))
    _application = web.Application()
    _application.router.add_post("/v1/chat/completions", _source.chat)
    _application.router.add_get("/v1/models", _source.models)
    _application.router.add_get("/health", _source.health)
    uvloop.run(serve(_application, int(_port)))
