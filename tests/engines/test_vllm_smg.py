"""SMG, a gateway of others, drives the model: its chats are those of the own service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession

from bench.peers.smg_gateway import REQUIREMENTS
from bench.peers.virtualenv import python_of
from bench.processes import free_port, random_key, started
from inference.engines.base import TextEngine
from tests.clients.clients import ENVIRONMENTS
from tests.conftest import eventually
from tests.engines.gateway_face import Face, face
from tests.engines.generating import chat, run

# The engine's start takes half a minute on an idle machine, and SMG may have to be installed.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

READY_SECONDS = 60
ASK = "What is the capital of France?"


@dataclass(frozen=True)
class Smg:
    """SMG in front of a server."""

    worker: Face
    http: ClientSession

    async def chat(self, **body: Any) -> tuple[int, str]:
        messages = [{"role": "user", "content": ASK}]
        body = {"model": "smollm2", "messages": messages, "temperature": 0} | body
        async with self.http.post("/v1/chat/completions", json=body) as response:
            return response.status, await response.text()


@asynccontextmanager
async def smg(engine: TextEngine, **settings: Any) -> AsyncIterator[Smg]:
    python = await asyncio.to_thread(python_of, "smg", REQUIREMENTS, ENVIRONMENTS)
    port, key = free_port(), random_key()
    async with face(engine, **settings) as worker:
        # Without a path of a model: SMG fetches the tokenizer from the worker.
        command = [str(python.with_name("smg")), "launch", "--backend", "vllm"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--api-key", key]
        command += ["--worker-urls", f"grpc://127.0.0.1:{worker.server.gateway_port}"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        command += ["--worker-startup-check-interval", "1", "--disable-retries"]
        command += ["--shutdown-grace-period-secs", "1", "--log-level", "warn"]
        url = f"http://127.0.0.1:{port}"
        with started("smg-test", command) as gateway:
            chatting = gateway.wait_until_chatting
            await asyncio.to_thread(chatting, url, "smollm2", key, READY_SECONDS)
            await eventually(lambda: engine.health().running == 0)
            async with ClientSession(url, headers={"authorization": f"Bearer {key}"}) as http:
                yield Smg(worker, http)


async def test_a_chat_through_smg_is_the_chat_of_the_own_service(engine: TextEngine) -> None:
    own = await run(engine, chat(ASK), 24)
    async with smg(engine) as gateway:
        status, text = await gateway.chat(max_tokens=24)
        assert status == 200, text
        body = json.loads(text)
        assert body["choices"][0]["message"]["content"] == own.texts[0]
        assert own.usage is not None
        usage = body["usage"]
        assert usage["prompt_tokens"] == own.usage.prompt_tokens
        assert usage["completion_tokens"] == own.usage.completion_tokens

        status, text = await gateway.chat(max_tokens=24, stream=True)
        assert status == 200, text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        pieces = [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]]
        assert len([piece for piece in pieces if piece]) > 1
        assert "".join(pieces) == own.texts[0]


async def test_a_client_of_smg_that_leaves_frees_the_permit(engine: TextEngine) -> None:
    async with smg(engine, max_running=1, max_queued=0) as gateway:
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": ASK}],
            "max_tokens": 1900,
            "ignore_eos": True,
            "stream": True,
        }
        admission = gateway.worker.server.registry.models[0].admission
        async with gateway.http.post("/v1/chat/completions", json=body) as response:
            await response.content.readline()
            await eventually(lambda: engine.health().running == 1)
            status, text = await gateway.chat(max_tokens=4)
            assert (status, admission.running) == (429, 1), text
        await eventually(lambda: engine.health().running == 0)
        await eventually(lambda: admission.running == 0)
        assert gateway.worker.counted('isthmus_cancels_total{stage="output"}') >= 1
        status, text = await gateway.chat(max_tokens=4)
        assert status == 200, text
