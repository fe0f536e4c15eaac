"""The bars of bad input and security; docs/reliability.md has the table of all bars."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from aiohttp import ClientSession

from inference.config import ModelConfig
from inference.engines.received_images import check_images
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest
from keys import create_key, revoke_key
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack
from tests.contract import programs
from tests.contract.load import SLACK, check_seconds, measured, percentile_of_gaps, streams, until
from tests.contract.test_bars import scripted
from tests.contract.test_http import CHAT, post, raw_post
from tests.contract.test_http_faults import MALFORMED, connection, exchange
from tests.contract.test_recovery import REQUESTS
from tests.unit.test_received_images import declared_png, encoded

MIB = 1024 * 1024
ALL = (TEXT, EMBEDDING, IMAGE)
MODELS = {"embedding": EMBEDDING.id, "image": IMAGE.id}


@pytest.fixture
def transport() -> str:
    """The bars are those of the default transport."""
    return "session"


async def test_body_over_the_limit_is_refused_before_it_is_read(start_stack: StartStack) -> None:
    stack = await start_stack(max_body_bytes=1_000_000, body_seconds=60.0)
    async with raw_post(stack, "/v1/completions", b"{", length=1_000_001) as (reader, _):
        async with asyncio.timeout(SLACK):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    async with connection(stack) as (reader, writer):
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(11):  # No last chunk comes.
            writer.write(b"%x\r\n%b\r\n" % (100_000, b" " * 100_000))
        async with asyncio.timeout(SLACK):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")


async def test_200_half_requests_leave_streams_even(start_stack: StartStack) -> None:
    stack = await start_stack(scripted(0.02), head_seconds=2.0, body_seconds=2.0)
    port = int(stack.url.rpartition(":")[2])
    halves = []
    started = time.monotonic()
    for number in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(head + (b"content-length: 99\r\n\r\n{" if number % 2 else b"x-a: "))
        halves.append((reader, writer))
    gap = percentile_of_gaps(await streams(stack.http, 50, {"tokens": 60}))
    ends = await asyncio.gather(*(reader.read() for reader, _ in halves))
    seconds = time.monotonic() - started
    measured(f"closed after {seconds:.1f} s for limits of 2 s, p99 gap {1000 * gap:.1f} ms")
    assert [end[:12] for end in ends] == [b"", b"HTTP/1.1 400"] * 100
    check_seconds(gap, 0.075)
    # The bar is 12 s for the limits of 10 s.
    check_seconds(seconds, 2, 2)
    for _, writer in halves:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "data",
    [declared_png(30_000, 30_000), encoded("PNG", (64, 64))[:20], b"no image"],
    ids=["bomb", "truncated", "no image"],
)
async def test_bad_image_is_a_400_before_it_is_decoded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    prepare = stack.engine.prepare

    async def checking(request: GenerateRequest, terms: Any) -> Any:
        check_images(request.chat)  # As the engine for models with images does.
        return await prepare(request, terms)

    monkeypatch.setattr(stack.engine, "prepare", checking)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = CHAT | {"messages": [{"role": "user", "content": content}]}
    before = psutil.Process().memory_info().rss
    status, answer, _ = await post(stack, "/v1/chat/completions", json=body)
    grown = (psutil.Process().memory_info().rss - before) / MIB
    measured(f"grown {grown:.1f} MiB")
    assert status == 400
    assert answer["error"]["param"] == "messages[0].content[0].image_url.url"
    # Decoded, the bomb has 2.5 GiB.
    assert grown <= 50


async def test_key_that_stays_valid_never_fails_while_others_are_made_and_revoked(
    start_stack: StartStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "stays")
    stack = await start_stack(keys=keys, key=key)
    stop = asyncio.Event()

    async def ask(key: str = key) -> int:
        headers = {"authorization": f"Bearer {key}"}
        async with stack.http.get("/v1/models", headers=headers) as response:
            await asyncio.sleep(0.002)
            return response.status

    load = asyncio.create_task(until(stop, 4, ask))
    for _ in range(2):
        entry, other = create_key(keys, "comes and goes")
        async with asyncio.timeout(SLACK):
            while await ask(other) != 200:
                await asyncio.sleep(0.05)
        revoke_key(keys, entry.id)
        async with asyncio.timeout(SLACK):
            while await ask(other) == 200:
                await asyncio.sleep(0.05)
    stop.set()
    statuses = await load
    measured(f"{len(statuses)} requests, {len(statuses) - statuses.count(200)} failed")
    assert len(statuses) > 200
    assert set(statuses) == {200}


CANARY = "canary-9d41"
CUES: dict[str, list[dict[str, Any]]] = {
    "chat": [{"text": f"{CANARY} said"}]
    + [{"text": f"{CANARY} said a b c", "fail": f} for f in ("start", "mid", "late", "refuse")],
    "embedding": [{"fail": "start"}, {"seconds": 0}, {"seconds": "x"}],
    "image": [{"fail": f} for f in ("start", "mid", "late", "unsafe")] + [{"steps": 1}],
}
SECRET = {"user": CANARY, "metadata": {"a": CANARY}}


def canary_request(number: int, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A request of any kind that has the canary in it and makes the engine answer or fail."""
    kind = chance.choice(["chat", "completion", "embedding", "image", "image"])
    cue = json.dumps(chance.choice(CUES["chat" if kind == "completion" else kind]))
    prompt = chance.choice([CANARY, cue, cue])
    stream = bool(number % 2)
    if kind == "chat":
        messages = [{"role": "user", "content": text} for text in (CANARY, prompt)]
        return "/v1/chat/completions", {"model": TEXT.id, "messages": messages, "stream": stream}
    if kind == "completion":
        return "/v1/completions", {"model": TEXT.id, "prompt": prompt, "stream": stream}
    if kind == "embedding":
        return "/v1/embeddings", {"model": EMBEDDING.id, "input": [prompt, CANARY]}
    image = {"model": IMAGE.id, "prompt": prompt, "size": "64x64", "stream": stream}
    return "/v1/images/generations", image


async def test_no_canary_of_1000_mixed_requests_is_logged(
    start_stack: StartStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(*ALL, keys=keys, server_keys=keys, key=key, upstream_token=edge_key)
    chance, statuses = random.Random(3), []

    async def ask(number: int) -> None:
        path, body = canary_request(number, chance)
        if number % 10 == 3:
            body |= chance.choice([{CANARY: 1}, {"model": CANARY}, {"n": CANARY}, SECRET])
        headers = {"authorization": f"Bearer {CANARY}"} if number % 100 == 7 else {}
        async with stack.http.post(path, json=body, headers=headers) as response:
            statuses.append(response.status)
            await response.read()

    for first in range(0, 960, 16):
        await asyncio.gather(*(ask(first + number) for number in range(16)))
    # The engines that run out of memory or die come last: the second ends its process.
    for kind, fail in (("image", "memory"), ("embedding", "memory"), ("image", "die")):
        path, body = REQUESTS[kind]
        cue = {"input" if kind == "embedding" else "prompt": json.dumps({"fail": fail})}
        async with stack.http.post(path, json={**body, "model": MODELS[kind], **cue}) as response:
            assert response.status == 503
    metadata = (("authorization", f"Bearer {key}"),)
    for number in range(40):
        cue = json.dumps(chance.choice(CUES["chat"]))
        if number % 2:
            call: Any = stack.stub.Generate(
                GenerateRequest(model=TEXT.id, text=cue), metadata=metadata
            )
        else:
            request = GenerateImageRequest(model=IMAGE.id, prompt=CANARY)
            call = stack.stub.GenerateImage(request, metadata=metadata)
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    measured(f"{len(statuses) + 43} requests, statuses {sorted(set(statuses))}")
    assert {200, 400, 401, 404, 500} <= set(statuses)
    assert "ScriptedFaultError" in caplog.text, "faults are logged"
    for secret in (CANARY, key, edge_key):
        assert secret not in caplog.text


# Runs an edge that writes down where Python code connects to, and which names it looks up.
AUDITED = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen"):
        print("AUDIT", event, arguments[1:] if "connect" in event else arguments, flush=True)
sys.addaudithook(hook)
print("AUDIT begins", flush=True)
from edge.__main__ import main
sys.exit(main())
"""


async def test_edge_connects_to_its_upstreams_only(tmp_path: Path) -> None:
    image = ModelConfig(id=IMAGE.id, engine="scripted-image", engine_args={"steps": 2})
    async with programs.service(TEXT, EMBEDDING, image) as service:
        start = ("-c", AUDITED)
        async with programs.edge(service.port, start=start) as edge:
            process, stop = psutil.Process(edge.process.pid), asyncio.Event()
            remote: set[Any] = set()

            async def look() -> None:
                while not stop.is_set():
                    for end in process.net_connections("inet"):
                        if end.raddr and end.laddr.port != edge.port:
                            remote.add((end.raddr.ip.removeprefix("::ffff:"), end.raddr.port))
                    await asyncio.sleep(0.01)

            looking = asyncio.create_task(look())
            await ask_everything(f"http://127.0.0.1:{edge.port}")
            stop.set()
            await looking
            audited = [line for line in edge.log.read_text().splitlines() if "AUDIT" in line]
    assert remote == {("127.0.0.1", service.port)}
    # grpc connects in C. Python, if anything, looks up the upstream and the address to listen on.
    assert audited.pop(0) == "AUDIT begins"
    for line in audited:
        assert re.search(rf"getaddrinfo.*'127\.0\.0\.1', '?({service.port}|{edge.port})\b", line)


async def ask_everything(url: str) -> None:
    async with ClientSession(url) as http:
        for kind, (path, body) in REQUESTS.items():
            document = {"model": MODELS.get(kind, TEXT.id), **body}
            if kind == "image":
                document |= {"size": "64x64", "response_format": "url"}
            async with http.post(path, json=document) as response:
                assert response.status == 200, await response.text()
        picture = {"url": "http://192.0.2.1/a.png"}
        content = [{"type": "image_url", "image_url": picture}]
        chat = {"model": TEXT.id, "messages": [{"role": "user", "content": content}]}
        async with http.post("/v1/chat/completions", json=chat) as response:
            assert response.status == 400
        for path in ("/docs", "/openapi.json", "/v1/models", "/health", "/nothing"):
            async with http.get(path) as response:
                await response.read()


# What no error may have: a path of the machine, an address, a name of a class, a stack.
INTERNAL = re.compile(
    r"(?<![\w.])/(?:root|home|usr|tmp|work|opt|var|etc)\b|\d+\.\d+\.\d+\.\d+|[A-Za-z]+(?:Error|Exception)\b"
    r"(?!\")|Traceback|\bline \d+|\.py\b|0x[0-9a-f]{6,}|canary"
)


async def bodies_of_errors(stack: Stack) -> AsyncIterator[tuple[int, bytes]]:
    """Every kind of error that REST gives."""
    for cues, path in (
        (CUES["chat"], "/v1/completions"),
        (CUES["image"], "/v1/images/generations"),
    ):
        for cue, stream in ((cue, stream) for cue in cues for stream in (False, True)):
            model = TEXT.id if "completions" in path else IMAGE.id
            text = json.dumps({k: v for k, v in cue.items() if k != "text"})
            body = {"model": model, "prompt": text, "stream": stream}
            async with stack.http.post(path, json=body) as response:
                yield response.status, (await response.read()).rpartition(b'{"error"')[2]
    for path, body in (
        ("/v1/completions", {"model": "no", "prompt": "x"}),
        ("/v1/completions", {"model": TEXT.id, "prompt": "x " * 5000}),
        ("/v1/completions", {"model": TEXT.id, "prompt": 5}),
        ("/v1/embeddings", {"model": EMBEDDING.id, "input": '{"seconds": "x"}'}),
        ("/v1/nothing", {}),
    ):
        async with stack.http.post(path, json=body) as response:
            yield response.status, await response.read()
    for data in MALFORMED.values():
        for response in await exchange(stack, data):
            yield response.status, response.body
    await stack.server.close()
    async with stack.http.post("/v1/completions", json={"model": TEXT.id, "prompt": "x"}) as lost:
        yield lost.status, await lost.read()


async def test_errors_tell_nothing_of_the_inside(start_stack: StartStack) -> None:
    stack = await start_stack(*ALL)
    seen = set()
    async for status, body in bodies_of_errors(stack):
        seen.add(status)
        assert not (found := INTERNAL.search(body.decode())), (found, body)
    assert {400, 404, 500, 503} <= seen
