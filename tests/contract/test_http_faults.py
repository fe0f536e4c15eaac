"""Malformed HTTP, unusual targets, incomplete requests and slow readers, over bare sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.app import build_app
from edge.openai.errors import OpenAIError
from edge.openai.errors import http as http_errors
from keys import create_key
from tests.conftest import Stack, StartStack, eventually


def chat_body(text: str) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "scripted", "messages": messages, "max_tokens": 2}).encode()


CHAT = chat_body("hi")
CHUNKED = b"transfer-encoding: chunked\r\n"
# Routes that need no key.
OPEN = {
    "/",
    "/page/{asset}",
    "/health",
    "/ready",
    "/ping",
    "/openapi.json",
    "/docs",
    "/docs/{asset}",
    "/files/{name}",
}


@pytest.fixture
def transport() -> str:
    """No test here depends on the upstream transport, so one is enough."""
    return "session"


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        answer = json.loads(self.body)
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = answer["error"]
        return error


def head(method: str, target: str, *headers: bytes, version: str = "1.1") -> bytes:
    line = f"{method} {target} HTTP/{version}\r\nhost: x\r\n".encode()
    return line + b"".join(headers) + b"\r\n"


def post(*headers: bytes, body: bytes = CHAT, path: str = "/v1/chat/completions") -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    if any(b"content-length" in header or header == CHUNKED for header in headers):
        length = b""
    return head("POST", path, b"content-type: application/json\r\n", length, *headers) + body


def models(*headers: bytes) -> bytes:
    return head("GET", "/v1/models", *headers)


def parse_responses(data: bytes) -> list[Response]:
    """Splits the bytes of a connection into responses; every byte must belong to one."""
    found = []
    while data:
        top, separator, data = data.partition(b"\r\n\r\n")
        assert separator, top
        line, *lines = top.decode("ascii").split("\r\n")
        protocol, status, _ = line.split(" ", 2)
        assert protocol in ("HTTP/1.0", "HTTP/1.1")
        headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in lines)}
        length = int(headers.get("content-length", 0))
        found.append(Response(int(status), headers, data[:length]))
        data = data[length:]
    return found


def port_of(stack: Stack) -> int:
    return int(stack.url.rpartition(":")[2])


@asynccontextmanager
async def connection(
    stack: Stack,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(stack))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def is_open(stack: Stack, client: tuple[str, int]) -> bool:
    """True while the edge's end of the client's connection is open."""
    return any(
        (end.laddr.port, end.raddr) == (port_of(stack), client)
        for end in psutil.Process().net_connections("tcp4")
        if end.raddr
    )


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read()


async def exchange(stack: Stack, data: bytes) -> list[Response]:
    """Sends `data` and returns all responses until the edge closes the connection."""
    async with connection(stack) as (reader, writer):
        writer.write(data)
        return parse_responses(await read_to_end(reader))


def assert_refused(answer: Response, error: OpenAIError) -> None:
    assert (answer.status, answer.body) == (error.status, error.body())
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server"] == "isthmus"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"].startswith("req_")


MALFORMED = {
    "bad chunk": post(CHUNKED, body=b"zz\r\n\r\n"),
    "129 headers": post(*(b"x-%d: 1\r\n" % number for number in range(126))),
    "both framings": post(CHUNKED, b"content-length: 5\r\n"),
    "unknown transfer encoding": post(b"transfer-encoding: gzip\r\n"),
    "negative length": post(b"content-length: -1\r\n"),
    "signed length": post(b"content-length: +1\r\n"),
    "length beyond 64 bits": post(b"content-length: 99999999999999999999999\r\n"),
    "no request line": b"garbage\r\n\r\n",
    "a space in the target": head("GET", "/v1/mo dels"),
    "a control character in the target": head("GET", "/v1/mo\x01dels"),
    "bytes in the target": head("GET", "/v1/models/é"),
    "an asterisk without OPTIONS": head("GET", "*"),
    "an address without a host": head("GET", "http:///v1/models"),
    "an unknown method": head("BREW", "/v1/models"),
    "a method in lower case": head("get", "/v1/models"),
    "a folded header": models(b"x-a: 1\r\n 2\r\n"),
    "a space before the colon": models(b"x-a : 1\r\n"),
    "a NUL in a header": models(b"x-a: \x00\r\n"),
    "bare line feeds": models().replace(b"\r\n", b"\n"),
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/1.2": head("GET", "/v1/models", version="1.2"),
    "HTTP/2.0 in a request line": head("GET", "/v1/models", version="2.0"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": head("GET", "/v1/models", version="9.9"),
    "TLS": bytes.fromhex("160301020001 0001fc0303"),
}


async def test_malformed_http_gets_a_json_error(stack: Stack) -> None:
    for name, data in MALFORMED.items():
        refused = await exchange(stack, data)
        assert len(refused) == 1, name
        assert_refused(refused[0], http_errors.malformed_request())
    async with stack.http.get("/v1/models") as response:
        assert response.status == 200


async def responses(stack: Stack, **labels: str) -> float:
    """How many responses with these labels the metrics have."""
    async with stack.http.get("/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "isthmus_http_responses_total"
            and labels.items() <= sample.labels.items()
        )


async def test_malformed_http_is_counted_once_without_labels_of_its_own(stack: Stack) -> None:
    refused = [*MALFORMED.values(), models(b"x-a: ", b"a" * 9000, b"\r\n")]
    refused.append(models(b"expect: nothing\r\n"))
    for data in refused:
        await exchange(stack, data)
    assert await responses(stack) == len(refused)
    assert await responses(stack, method="", path="unknown", code="400") == len(refused)
    # The handler runs already, so the response is that of its route.
    async with connection(stack) as (reader, writer):
        writer.write(post(CHUNKED, body=b"1\r\n{\r\n"))
        await eventually(lambda: stack.edge.requests == 1)
        writer.write(b"zz\r\n\r\n")
        await read_to_end(reader)
    assert await responses(stack, method="POST", path="/v1/chat/completions", code="400") == 1
    assert await responses(stack, path="unknown") == len(refused)


NAMED_HEADERS = {
    "host": models(b"host: y\r\n"),
    "content-length": post(b"content-length: 5\r\n", b"content-length: 5\r\n"),
    "content-type": post(b"content-type: application/json\r\n", b"content-type: text/plain\r\n"),
    "transfer-encoding": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
}


@pytest.mark.parametrize("name", NAMED_HEADERS)
async def test_doubled_header_is_named(stack: Stack, name: str) -> None:
    (refused,) = await exchange(stack, NAMED_HEADERS[name])
    error = json.loads(refused.body)["error"]
    assert (refused.status, error["code"]) == (400, "malformed_request")
    assert f"The header '{name}' is " in error["message"]
    assert "sent more than once" in error["message"]


async def test_missing_host_is_named(stack: Stack) -> None:
    (refused,) = await exchange(stack, b"GET /v1/models HTTP/1.1\r\n\r\n")
    assert_refused(refused, http_errors.malformed_header("Missing 'Host' header in request."))
    assert b"The header 'host' is missing." in refused.body


async def test_too_long_line_gets_a_json_error(stack: Stack) -> None:
    for data in (
        models(b"x: " + b"a" * 8193 + b"\r\n"),
        models(b"a" * 8193 + b": x\r\n"),
        head("GET", "/" + "a" * 8193),
        # The client is still sending when the edge refuses; it must still get the response.
        models(b"x: " + b"a" * 4_000_000 + b"\r\n"),
    ):
        (refused,) = await exchange(stack, data)
        assert_refused(refused, http_errors.line_too_long(8190))
    just = models(b"x: " + b"a" * 8180 + b"\r\n", b"connection: close\r\n")
    assert [answer.status for answer in await exchange(stack, just)] == [200]


async def test_128_headers_are_accepted(stack: Stack) -> None:
    headers = [b"x-%d: 1\r\n" % number for number in range(126)]
    (answer,) = await exchange(stack, models(*headers, b"connection: close\r\n"))
    assert answer.status == 200


async def test_malformed_later_chunk_is_refused_at_once(
    start_stack: StartStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.http_protocol.LINGER_SECONDS", 0.05)
    stack = await start_stack(body_seconds=600.0)
    async with connection(stack) as (reader, writer):
        writer.write(post(CHUNKED, body=b'3\r\n{"m\r\n'))
        await eventually(lambda: stack.edge.requests == 1)
        writer.write(b"zz\r\n")
        (refused,) = parse_responses(await read_to_end(reader))
        client = writer.get_extra_info("sockname")
        await eventually(lambda: not is_open(stack, client))
    assert_refused(refused, http_errors.malformed_request())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_malformed_pipelined_chunk_is_refused_after_the_earlier_response(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(body_seconds=600.0)
    slow = {"model": "scripted", "prompt": json.dumps({"prefill_seconds": 0.3}), "max_tokens": 1}
    async with connection(stack) as (reader, writer):
        writer.write(post(body=json.dumps(slow).encode(), path="/v1/completions"))
        writer.write(post(CHUNKED, body=b'3\r\n{"m\r\n'))
        await eventually(lambda: stack.engine.health().running == 1)
        writer.write(b"zz\r\n")
        answered, refused = parse_responses(await read_to_end(reader))
    assert answered.status == 200
    assert_refused(refused, http_errors.malformed_request())


async def test_malformed_request_after_a_response_is_refused(stack: Stack) -> None:
    async with connection(stack) as (reader, writer):
        writer.write(models())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"garbage\r\n\r\n")
        data = await read_to_end(reader)
    (refused,) = parse_responses(data[data.index(b"HTTP/1.") :])
    assert_refused(refused, http_errors.malformed_request())


async def test_only_the_100_continue_expectation_is_accepted(stack: Stack) -> None:
    for data in (
        post(b"expect: something-else\r\n"),
        post(b"expect: something-else\r\n", path="/nope"),
    ):
        (refused,) = await exchange(stack, data)
        assert_refused(refused, http_errors.unsupported_expectation())
    hurried, answer = await exchange(
        stack, post(b"expect: 100-Continue\r\n", b"connection: close\r\n")
    )
    assert (hurried.status, answer.status) == (100, 200)


async def test_bytes_of_malformed_requests_are_not_logged(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for data in (
        models(b"authorization: Bearer canary\x00\r\n"),
        models(b"authorization: Bearer " + b"canary" * 2000 + b"\r\n"),
        head("GET", "/canary canary"),
    ):
        await exchange(stack, data)
    assert "a client sent no valid HTTP" in caplog.text
    assert "canary" not in caplog.text
    assert "Traceback" not in caplog.text


TARGETS = [
    ("GET", "/v1/models", 200, None),
    ("GET", "/v1/%6dodels", 200, None),
    ("GET", "/v1/models?x=%ff&%%%", 200, None),
    ("GET", "/v1/models#x", 200, None),
    ("GET", "http://elsewhere/v1/models", 200, None),
    ("GET", "http://x/health?/../v1/models", 200, None),
    ("HEAD", "/v1/models", 200, None),
    ("HEAD", "/health", 200, None),
    ("HEAD", "/v1/chat/completions", 405, None),
    ("HEAD", "/nope", 404, None),
    ("OPTIONS", "/v1/models", 405, "method_not_supported"),
    ("OPTIONS", "/v1/chat/completions", 405, "method_not_supported"),
    ("OPTIONS", "*", 404, "unknown_url"),
    ("TRACE", "/v1/models", 405, "method_not_supported"),
    ("PURGE", "/v1/models", 405, "method_not_supported"),
    ("DELETE", "/v1/models/gpt-4", 405, "method_not_supported"),
    ("CONNECT", "x:80", 404, "unknown_url"),
    ("GET", "/v1/models/", 404, None),
    ("GET", "/v1/../v1/models", 404, None),
    ("GET", "/v1%2fmodels", 404, None),
    ("GET", "/v1/models/%0d%0ax", 404, None),
    ("GET", "/v1/models/%zz%", 404, "model_not_found"),
    ("GET", "/v1/models/%ff%fe", 404, "model_not_found"),
    ("GET", "/v1/models/%00", 404, "model_not_found"),
    ("GET", "//v1/models", 404, "unknown_url"),
    ("GET", "/chat/completions", 404, "unknown_url"),
    ("POST", "/", 405, "method_not_supported"),
    ("GET", "/", 200, None),
    ("HEAD", "/", 200, None),
    ("GET", "/v1", 404, "unknown_url"),
]


async def test_unusual_targets_get_their_listed_status_and_code(stack: Stack) -> None:
    for method, target, status, code in TARGETS:
        (answer,) = await exchange(stack, head(method, target, b"connection: close\r\n"))
        assert answer.status == status, (method, target)
        assert answer.headers["x-request-id"].startswith("req_")
        if method != "HEAD" and status != 200:
            assert answer.error["code"] == code, (method, target)
            assert answer.error["type"] == "invalid_request_error"
        assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("host", [b"", b"x/health?", b"\xff\xfe[::", b"a:b:c", b"127.0.0.1:1"])
async def test_host_header_does_not_affect_the_response(stack: Stack, host: bytes) -> None:
    data = models(b"connection: close\r\n").replace(b"host: x", b"host: " + host)
    assert [answer.status for answer in await exchange(stack, data)] == [200]


async def test_every_registered_route_requires_a_key(
    start_stack: StartStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    stack = await start_stack(keys=keys, key=key)
    paths = {route.resource.canonical for route in build_app(stack.edge).router.routes()}
    assert OPEN & paths >= {"/health", "/ready"}
    for path in paths - OPEN:
        plain = path.format(id="x")
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            for target in (plain, f"http://health{plain}", f"{plain}?/health", f"{plain}#/health"):
                (answer,) = await exchange(stack, head(method, target, b"connection: close\r\n"))
                assert answer.status == 401, (method, target)


async def test_http_1_0_connection_closes_without_keep_alive(stack: Stack) -> None:
    (answer,) = await exchange(stack, head("GET", "/v1/models", version="1.0"))
    assert answer.status == 200
    keep = head("GET", "/v1/models", b"connection: keep-alive\r\n", version="1.0")
    last = head("GET", "/v1/models", version="1.0")
    assert [answer.status for answer in await exchange(stack, keep + last)] == [200, 200]


async def test_pipelined_requests_get_responses_in_order(stack: Stack) -> None:
    data = post() + models() + head("GET", "/nope") + post() * 40 + models(b"connection: close\r\n")
    received = await exchange(stack, data)
    assert [answer.status for answer in received] == [200, 200, 404, *[200] * 40, 200]
    assert [json.loads(answer.body).get("object") for answer in received[:2]] == [
        "chat.completion",
        "list",
    ]


async def test_large_pipelined_request_is_read_completely(stack: Stack) -> None:
    slow = post(body=chat_body('{"prefill_seconds": 0.5}'))
    large = post(b"connection: close\r\n", body=chat_body("x" * 8_000_000))
    assert [answer.status for answer in await exchange(stack, slow + large)] == [200, 200]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_upgrade_header_is_ignored(stack: Stack, protocol: bytes) -> None:
    upgrade = (
        b"connection: upgrade, http2-settings\r\n",
        b"upgrade: " + protocol + b"\r\n",
        b"http2-settings: AAMAAABkAAQAAP__\r\n",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"sec-websocket-version: 13\r\n",
    )
    async with connection(stack) as (reader, writer):
        writer.write(post(*upgrade))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(models(b"connection: close\r\n"))
        data = await read_to_end(reader)
    (answer,) = parse_responses(data[data.index(b"HTTP/1.") :])
    assert answer.status == 200


async def test_unread_body_is_not_parsed_as_a_second_request(stack: Stack) -> None:
    smuggled = head("GET", "/v1/models")
    length = b"content-length: %d\r\n" % len(smuggled)
    data = head("GET", "/nope", length) + smuggled + models(b"connection: close\r\n")
    assert [answer.status for answer in await exchange(stack, data)] in ([404], [404, 200])


async def test_compressed_body_is_refused_without_decompression(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    data = post(b"content-encoding: gzip\r\n", b"connection: close\r\n", body=b"no gzip")
    (refused,) = await exchange(stack, data)
    assert (refused.status, refused.error["code"]) == (415, "unsupported_content_encoding")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_incomplete_requests_time_out_without_delaying_others(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(head_seconds=1.0, body_seconds=1.0)
    half_head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: "
    half_body = post(b"content-length: 1000\r\n")
    halves = [await asyncio.open_connection("127.0.0.1", port_of(stack)) for _ in range(200)]
    for number, (_, writer) in enumerate(halves):
        writer.write(half_body if number % 2 else half_head)
    await eventually(lambda: stack.edge.requests == 100)
    async with stack.http.post(
        "/v1/chat/completions", data=CHAT, headers={"content-type": "application/json"}
    ) as response:
        assert response.status == 200
    ends = [await read_to_end(reader) for reader, _ in halves]
    assert ends[0::2] == [b""] * 100
    for end in ends[1::2]:
        (refused,) = parse_responses(end)
        assert refused.body == http_errors.body_timeout().body()
    assert stack.edge.requests == 0
    for _, writer in halves:
        writer.close()
        await writer.wait_closed()


async def test_slowly_sent_head_times_out(start_stack: StartStack) -> None:
    stack = await start_stack(head_seconds=0.3)
    async with connection(stack) as (reader, writer):
        writer.write(models())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /")
        closed = asyncio.create_task(read_to_end(reader))
        while not closed.done():
            writer.write(b"e")
            await asyncio.wait({closed}, timeout=0.05)
        assert b"HTTP/1." not in await closed


async def test_head_sent_byte_by_byte_is_accepted(start_stack: StartStack) -> None:
    stack = await start_stack(head_seconds=600.0)
    data = models(b"connection: close\r\n")
    async with connection(stack) as (reader, writer):
        for byte in data:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        (answer,) = parse_responses(await read_to_end(reader))
    assert answer.status == 200


async def test_head_timeout_ends_with_the_head(start_stack: StartStack) -> None:
    stack = await start_stack(head_seconds=0.2)
    slow = {"model": "scripted", "prompt": json.dumps({"prefill_seconds": 0.6}), "max_tokens": 1}
    request = post(body=json.dumps(slow).encode(), path="/v1/completions")
    async with connection(stack) as (reader, writer):
        writer.write(request[:10])
        await asyncio.sleep(0.01)
        writer.write(request[10:])
        async with asyncio.timeout(20):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"


async def test_idle_connection_is_closed(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.http_protocol.KEEP_ALIVE_SECONDS", 0.3)
    stack = await start_stack()
    async with connection(stack) as (reader, _):
        assert await read_to_end(reader) == b""
    async with connection(stack) as (reader, writer):
        writer.write(models())
        assert [answer.status for answer in parse_responses(await read_to_end(reader))] == [200]


@asynccontextmanager
async def non_reading_client(stack: Stack, request: bytes) -> AsyncIterator[Callable[[], bool]]:
    """A client that never reads; yields a function: True while the edge's end is open."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port_of(stack)))
        await loop.sock_sendall(client, request)
        ends = (stack, client.getsockname())
        yield lambda: is_open(*ends)


def large(words: int, size: int, **parameters: Any) -> bytes:
    """A completion request for `words` words of `size` bytes each."""
    script = {"text": f"{'x' * size} " * words}
    body = {"model": "scripted", "prompt": json.dumps(script), "max_tokens": words} | parameters
    return post(body=json.dumps(body).encode(), path="/v1/completions")


needs_user_timeout = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no TCP_USER_TIMEOUT"
)


@needs_user_timeout
@pytest.mark.parametrize(
    "request_bytes",
    [
        large(1000, 400, n=16),
        large(1, 400_000, n=2),
        large(1, 400_000, stream=True, n=2),
        large(1000, 400, stream=True, n=16),
        models() * 500,
    ],
    ids=["plain", "short-plain", "short-stream", "stream", "pipelined"],
)
async def test_client_that_reads_nothing_is_disconnected(
    start_stack: StartStack, request_bytes: bytes
) -> None:
    stack = await start_stack(write_stall_seconds=1.0, max_pending_bytes=1 << 30)
    async with non_reading_client(stack, request_bytes) as held:
        assert held()
        await eventually(lambda: not held(), 30.0)
    await eventually(lambda: stack.edge.requests == 0)
    await eventually(lambda: stack.engine.health().running == 0)


@needs_user_timeout
async def test_slow_reader_gets_the_whole_response(start_stack: StartStack) -> None:
    stack = await start_stack(write_stall_seconds=1.0)
    request = large(1000, 400, n=32).replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n")
    async with connection(stack) as (reader, writer):
        writer.write(request)
        data = bytearray()
        for _ in range(10):
            data += await reader.readexactly(500_000)
            # Each pause is below the stall limit of 1 s; together they take three times as long.
            await asyncio.sleep(0.3)
        data += await read_to_end(reader)
    (answer,) = parse_responses(bytes(data))
    assert len(json.loads(answer.body)["choices"]) == 32
