"""Thousands of mutated requests over real sockets get valid responses and leave no call running."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from yarl import URL

from edge.openai.errors import OpenAIError
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse, TokenIds
from isthmus.v1.image_pb2 import GenerateImageResponse
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.unit.openai.test_fuzz import CORPUS, PARSERS, mutated, seeds, valid_seeds

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "images": "/v1/images/generations",
}
MODELS = {
    "chat": "scripted",
    "completions": "gpt-4",
    "embeddings": "scripted-embedding",
    "images": "scripted-image",
}
METHODS_OF_SERVICE: dict[str, tuple[str, type[Message]]] = {
    "chat": ("Generate", GenerateResponse),
    "completions": ("Generate", GenerateResponse),
    "embeddings": ("Embed", EmbedResponse),
    "images": ("GenerateImage", GenerateImageResponse),
}
BODIES, ADDRESSES, RAW, MESSAGES = 2000, 400, 300, 900
AT_ONCE = 8
# Growth of resident memory; the clients share the process of the server.
MAX_GROWTH_BYTES = 10 * 1024 * 1024
HEADERS: list[dict[str, str]] = [
    {},
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=x; charset=y"},
    {"content-type": "application/json;;;"},
    {"content-type": "\u00e9"},
    {"content-encoding": "gzip"},
    {"content-encoding": "identity, identity"},
    {"accept": "text/event-stream"},
    {"accept-encoding": "br;q=x"},
    {"x-request-id": "a" * 4000},
    {"x-request-id": "\u00ff"},
    {"x-request-timeout": "1e3"},
    {"x-request-timeout": "\u00b2"},
    {"x-request-timeout": "9" * 400},
    {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-00"},
    {"tracestate": "a=" * 300},
    {"authorization": "Bearer"},
    {"authorization": "Basic \u00e9"},
    {"x-stainless-retry-count": "x"},
    {"cookie": "a=b; " * 400},
    {"if-none-match": "*"},
    {"range": "bytes=0-1"},
    {"host": "x/health?"},
]
METHODS = ["GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
PIECES = ["v1", "models", "chat", "completions", "embeddings", "images", "generations", "files",
          "0" * 32 + ".png", "health", "ready", "scripted", "org",
          "name", "%2F", "%00", "%0d%0a", "%ff", "..", ".", "", "a" * 500, "%F0%9F%98%80", "%zz",
          "?a=b", "?model=%ff", ";x", "{id}", "*"]  # fmt: skip
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture
def transport() -> str:
    """Requests that reach the service have passed the edge's checks; one transport is enough."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING, IMAGE)


async def at_once(count: int, one: Callable[[int], Awaitable[None]], width: int = AT_ONCE) -> None:
    """Awaits `one(number)` for each number below `count`, `width` at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


def check_error(body: bytes) -> None:
    document = json.loads(body)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert len(body) < 4096


def check_events(body: bytes) -> None:
    """Asserts that the stream ends with [DONE] or with its only error event."""
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    if events[0].startswith("event: "):
        # Image events have names, and their streams end without [DONE].
        assert all(event.startswith("event: image_generation.") for event in events)
        events = [event.partition("\n")[2] for event in events] + ["data: [DONE]"]
    assert all(event.startswith("data: ") for event in events)
    documents = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert not any("error" in document for document in documents)
    if events[-1] != "data: [DONE]":
        check_error(events[-1].removeprefix("data: ").encode())


async def send(stack: Stack, method: str, path: str | URL, body: bytes | None = None,
               headers: dict[str, str] | None = None) -> int:  # fmt: skip
    data = None if body is None else io.BytesIO(body)
    sent = {"content-type": "application/json"} | (headers or {})
    async with stack.http.request(method, path, data=data, headers=sent) as response:
        answer = await response.read()
    assert 200 <= response.status < 300 or 400 <= response.status < 500, (path, answer)
    assert response.headers["content-type"]
    assert response.headers["x-request-id"]
    if method == "HEAD":
        assert not answer
    elif response.status >= 400:
        assert response.content_type == "application/json"
        check_error(answer)
    elif response.content_type == "text/event-stream":
        check_events(answer)
    return response.status


async def assert_unharmed(stack: Stack) -> None:
    """Asserts that no call is running or queued and that the next request succeeds."""
    registry = stack.server.registry
    await eventually(lambda: not registry.running_calls)
    assert not any(served.admission.running for served in registry.models)
    assert not any(served.admission.queued for served in registry.models)
    assert not stack.edge.exchanges
    await eventually(lambda: not stack.edge.requests)
    assert not any(r.outstanding for u in stack.edge.router.upstreams for r in u.replicas.values())
    body = {"model": "scripted", "prompt": "hi", "max_tokens": 1}
    assert await send(stack, "POST", PATHS["completions"], json.dumps(body).encode()) == 200


class Bodies:
    """A seeded source of mutated bodies, with and without `stream`."""

    def __init__(self, seed: str) -> None:
        self._dice = random.Random(seed)
        self._seeds, self._valid = (
            {e: [seed | {"model": MODELS[e]} for seed in source(e)] for e in PATHS}
            for source in (seeds, valid_seeds)
        )

    def pick(self) -> tuple[str, bytes]:
        endpoint = self._dice.choice(list(PATHS))
        known = self._seeds[endpoint]
        if self._dice.random() < 0.5:
            known = self._valid[endpoint]
        seed = self._dice.choice(known)
        if endpoint != "embeddings":
            seed = seed | {"stream": self._dice.random() < 0.5}
            for name in () if seed["stream"] else ("stream_options", "partial_images"):
                seed.pop(name, None)
        if endpoint == "images" and seed.get("size", "auto") in (None, "auto", "1024*1024"):
            # Images of the default size would take too long.
            seed = seed | {"size": "80*64"}
        return endpoint, mutated(self._dice, seed, known)


async def test_mutated_bodies_and_headers_get_valid_responses(stack: Stack) -> None:
    source, dice = Bodies("bodies"), random.Random("headers")
    statuses: list[int] = []

    async def one(_: int) -> None:
        endpoint, body = source.pick()
        headers = dice.choice(HEADERS) if dice.random() < 0.2 else {}
        statuses.append(await send(stack, "POST", PATHS[endpoint], body, headers))

    await at_once(BODIES // 5, one)
    gc.collect()
    before = psutil.Process().memory_info().rss
    await at_once(BODIES - BODIES // 5, one)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < MAX_GROWTH_BYTES
    # Between 5 % and 95 % succeed, so the mutations reach past the first check.
    assert BODIES // 20 < statuses.count(200) < BODIES * 19 // 20
    await assert_unharmed(stack)


async def test_corpus_bodies_get_valid_responses(stack: Stack) -> None:
    for path in sorted(CORPUS.glob("*/*")):
        await send(stack, "POST", PATHS[path.parent.name], path.read_bytes())
    await assert_unharmed(stack)


async def test_mutated_paths_and_methods_get_valid_responses(stack: Stack) -> None:
    dice = random.Random("addresses")

    async def one(_: int) -> None:
        pieces = [dice.choice(PIECES) for _ in range(dice.randint(1, 4))]
        prefix = dice.choice(["/v1/models/", "/v1/", "/", "/v1/models"])
        url = URL(stack.url + prefix + "/".join(pieces), encoded=True)
        method = dice.choice(METHODS)
        await send(stack, method, url, None, dice.choice(HEADERS))

    await at_once(ADDRESSES, one)
    await assert_unharmed(stack)


async def test_mutated_raw_requests_get_valid_responses(start_stack: StartStack) -> None:
    # Short timeouts, because many requests are incomplete.
    stack = await start_stack(TEXT, EMBEDDING, IMAGE, head_seconds=0.3, body_seconds=0.3)
    source, dice = Bodies("raw"), random.Random("raw")
    port = int(stack.url.rpartition(":")[2])
    junk = [b"\x00", b"\r\n", b"\n", b" ", b":", b"\xff", b"HTTP/9.9", b"-1", b"0x1", b"\r\n\r\n"]
    answered = 0

    async def one(_: int) -> None:
        nonlocal answered
        endpoint, body = source.pick()
        body = body[:2000]
        request = bytearray(
            b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json"
            b"\r\ncontent-length: %d\r\n\r\n" % (PATHS[endpoint].encode(), len(body)) + body
        )
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(min(len(request), 140))
            request[place : place + dice.randint(0, 3)] = dice.choice(junk)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = b""
        try:
            # If the mutation hit "close", the connection stays open after its response.
            async with asyncio.timeout(2):
                while piece := await reader.read(65_536):
                    answer += piece
        except (ConnectionResetError, TimeoutError):
            pass
        finally:
            writer.close()
        if answer:
            answered += 1
            check_raw_response(answer)

    # Many of them wait for a timeout.
    await at_once(RAW, one, 5 * AT_ONCE)
    assert answered > RAW // 4
    await assert_unharmed(stack)


def check_raw_response(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert 200 <= status < 300 or 400 <= status < 500, answer
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    assert headers[b"content-type"]
    if status >= 400 and b"transfer-encoding" not in headers:
        check_error(body[: int(headers[b"content-length"])])


# gRPC


def messages(endpoint: str) -> list[bytes]:
    """The serialized gRPC requests that the edge makes from the endpoint's seeds."""
    found: list[bytes] = []
    for seed in seeds(endpoint):
        try:
            call = PARSERS[endpoint](json.dumps(seed | {"model": MODELS[endpoint]}).encode())
        except OpenAIError:
            continue
        requests: list[Any] = getattr(call, "requests", None) or [call.request]  # type: ignore[union-attr]
        found += [request.SerializeToString() for request in requests]
    return found


def damaged(dice: random.Random, known: list[bytes]) -> bytes:
    data = bytearray(dice.choice(known))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0:
                data[place : place + 1] = dice.randbytes(1)
            case 1:
                data[place:place] = dice.randbytes(dice.randint(1, 4))
            case 2:
                del data[place : place + dice.randint(1, 4)]
            case 3:
                data += dice.choice(known)
    return bytes(data)


async def outcome(channel: grpc.aio.Channel, endpoint: str, data: bytes) -> grpc.StatusCode:
    """Returns the status of a call; a failed call must carry our ErrorInfo."""
    method, response = METHODS_OF_SERVICE[endpoint]
    path = f"/isthmus.v1.InferenceService/{method}"
    try:
        if method == "Embed":
            answer = channel.unary_unary(path, response_deserializer=response.FromString)
            await answer(data, timeout=30)
        else:
            call = channel.unary_stream(path, response_deserializer=response.FromString)
            async for _ in call(data, timeout=30):
                pass
    except grpc.aio.AioRpcError as raised:
        error = raised
    else:
        return grpc.StatusCode.OK
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "isthmus"
    return error.code()


async def test_mutated_grpc_messages_get_expected_statuses(stack: Stack) -> None:
    dice = random.Random("messages")
    known = {endpoint: messages(endpoint) for endpoint in PATHS}
    codes: list[grpc.StatusCode] = []

    async def one(_: int) -> None:
        endpoint = dice.choice(list(PATHS))
        codes.append(await outcome(stack.channel, endpoint, damaged(dice, known[endpoint])))

    await at_once(MESSAGES, one)
    assert set(codes) <= CODES, set(codes)
    assert len(set(codes)) > 2
    await assert_unharmed(stack)


async def test_oversized_and_malformed_grpc_messages_get_exact_statuses(stack: Stack) -> None:
    vast = GenerateRequest(model="scripted", text="x" * (5 << 20)).SerializeToString()
    assert await outcome(stack.channel, "completions", vast) is grpc.StatusCode.OK
    for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02\xff\xfe", b"\x0b" * 4000):
        for endpoint in ("completions", "embeddings", "images"):
            code = await outcome(stack.channel, endpoint, data)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
    many = GenerateRequest(model="scripted", token_ids=TokenIds(ids=[1] * 2_000_000))
    code = await outcome(stack.channel, "completions", many.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await stack.channel.unary_unary("/isthmus.v1.InferenceService/Nope")(b"", timeout=30)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await assert_unharmed(stack)
