"""The HTTP server with a small application instead of the edge's, over bare sockets."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web

from contract.memory import MemoryBudget
from edge.config import EdgeConfig
from edge.http_protocol import EdgeRunner
from edge.metrics import CLIENT_LEFT, EdgeMetrics
from edge.middleware.serve import add_headers, serve
from edge.openai.errors import http as http_errors
from edge.openai.errors import internal_error, overloaded
from edge.state import EDGE, EdgeRequest
from tests.conftest import eventually

GET = b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [b"POST /length HTTP/1.1", b"host: x", b"content-length: %d" % size, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Server:
    """A running server; `gate` holds the handler of /slow."""

    def __init__(self, config: EdgeConfig) -> None:
        app = web.Application(middlewares=[serve], client_max_size=64 * 1024 * 1024)
        app[EDGE] = SimpleNamespace(  # type: ignore[misc]
            config=config,
            keys=None,
            requests=0,
            draining=False,
            metrics=Mock(spec=EdgeMetrics),
            observer=None,
        )
        app.on_response_prepare.append(add_headers)
        app.router.add_get("/plain", self._plain)
        app.router.add_post("/plain", self._plain)
        app.router.add_post("/length", self._length)
        app.router.add_get("/slow", self._slow)
        app.router.add_get("/cut", self._cut)
        app.router.add_get("/gone", self._gone)
        app.router.add_get("/large", self._large)
        app.router.add_get("/hold", self._hold)
        app.router.add_get("/items/{name}", self._item)
        self.app = app
        self.memory = MemoryBudget(1 << 30)
        self.runner = EdgeRunner(app, config, self.memory)
        self.gate = asyncio.Event()
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.requests: list[web.Request] = []
        self.port = 0

    @property
    def connections(self) -> list[Any]:
        assert self.runner.server is not None
        return list(self.runner.server.connections)

    async def _plain(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return web.Response(text="plain")

    async def _length(self, request: web.Request) -> web.Response:
        self.began.set()
        if "x-wait" in request.headers:
            await self.gate.wait()
        try:
            return web.Response(text=str(len(await request.read())))
        except web.RequestPayloadError:
            raise http_errors.malformed_request() from None

    async def _slow(self, request: web.Request) -> web.Response:
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return web.Response(text="slow")

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        raise RuntimeError("injected")

    async def _gone(self, request: web.Request) -> web.Response:
        raise ConnectionResetError("injected")

    async def _large(self, request: EdgeRequest) -> web.Response:
        return web.Response(body=bytes(16 * 1024 * 1024))

    async def _hold(self, request: web.Request) -> web.Response:
        request.connection.holding.take(1000)
        return web.Response(text=str(self.memory.used))

    async def _item(self, request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["name"])


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self) -> tuple[bytes, dict[str, str], bytes]:
        """The status line, the headers and the body of the next response."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *rows = head.decode().strip().split("\r\n")
            pairs = (row.partition(": ") for row in rows)
            headers = {name.lower(): value for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return line.encode(), headers, body

    async def closed(self) -> bytes:
        """Reads all bytes until the connection ends."""
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                return await self.reader.read()
        return b""

    async def refused(self, error: Any, protocol: bytes = b"HTTP/1.1") -> None:
        """Expects an error and the end of the connection."""
        line, headers, body = await self.response()
        assert line.startswith(b"%b %d " % (protocol, error.status))
        assert body == error.body()
        assert headers["content-type"] == "application/json; charset=utf-8"[:16]
        assert headers["connection"] == "close"
        assert headers["server"] == "isthmus"
        assert headers["x-request-id"].startswith("req_")
        assert await self.closed() == b""


Start = Callable[..., Coroutine[Any, Any, tuple[Server, Callable[[], Any]]]]


@asynccontextmanager
async def serving(**config: Any) -> AsyncIterator[Server]:
    server = Server(EdgeConfig(**config))
    await server.runner.setup()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server.runner.make_connection, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.gate.set()
        listening.close()
        await server.runner.cleanup()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


# Requests


async def test_connection_carries_one_request_after_another() -> None:
    async with serving() as server, connected(server) as client:
        for _ in range(2):
            client.send(GET)
            line, headers, body = await client.response()
            assert (line, body) == (b"HTTP/1.1 200 OK", b"plain")
            assert "connection" not in headers
        client.send(GET + post(b"xyz") + GET)
        assert [(await client.response())[2] for _ in range(3)] == [b"plain", b"3", b"plain"]
        (request, *_) = server.requests
        assert request.app is server.app
        assert request.match_info.route.resource is not None
        assert request.match_info.route.resource.canonical == "/plain"


async def test_request_holds_memory_until_its_response_is_sent() -> None:
    async with serving() as server, connected(server) as client:
        for _ in range(2):
            client.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.response())[2] == b"1000"
            await eventually(lambda: server.memory.used == 0)


async def test_malformed_request_is_counted_once() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"GET /plain HTTP/1.1\r\nhost : x\r\n\r\n")
        assert b" 400 " in (await client.response())[0]
        responded: Any = server.app[EDGE].metrics.responded
        responded.assert_called_once_with("", "", 400)


async def test_route_is_found_by_method_and_path() -> None:
    async with serving() as server, connected(server) as client:
        for target, status, body in (
            (b"GET /items/a%20b", 200, b"a b"),
            (b"POST /plain", 200, b"plain"),
            (b"GET /plain?x=1", 200, b"plain"),
            (b"GET /else", 404, http_errors.unknown_path("GET", "/else").body()),
            (b"PUT /plain", 405, http_errors.method_not_allowed("PUT", "/plain").body()),
        ):
            client.send(target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            line, _, got = await client.response()
            assert (int(line.split()[1]), got) == (status, body)


async def test_route_without_variables_is_found_without_the_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved: list[str] = []
    async with serving() as server, connected(server) as client:
        resolve = server.app.router.resolve

        async def note(request: web.Request) -> Any:
            resolved.append(request.path)
            return await resolve(request)

        monkeypatch.setattr(server.app.router, "resolve", note)
        for path in (b"/plain", b"/items/a"):
            client.send(GET.replace(b"/plain", path))
            await client.response()
        assert resolved == ["/items/a"]


async def test_compressed_body_is_not_decompressed() -> None:
    data = gzip.compress(b"x" * 1000)
    async with serving() as server, connected(server) as client:
        client.send(post(data, b"content-encoding: gzip"))
        assert (await client.response())[2] == str(len(data)).encode()


async def test_http_1_0_connection_ends_with_its_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.http_protocol.LINGER_SECONDS", 60.0)
    async with serving() as server, connected(server) as client:
        client.send(GET.replace(b"1.1", b"1.0"))
        line, _, body = await client.response()
        assert (line, body) == (b"HTTP/1.0 200 OK", b"plain")
        assert await client.closed() == b""
        await eventually(lambda: not server.connections)


@pytest.mark.parametrize("version", [b"2.0", b"1.2"])
async def test_other_version_is_refused_in_http_1_0(version: bytes) -> None:
    async with serving() as server, connected(server) as client:
        client.send(GET.replace(b"1.1", version))
        await client.refused(http_errors.malformed_request(), b"HTTP/1.0")
        assert server.requests == []


async def test_only_100_continue_may_be_expected() -> None:
    async with serving() as server:
        async with connected(server) as client:
            client.send(post(b"", b"expect: 100-continue", length=3))
            assert (await client.response())[0] == b"HTTP/1.1 100 Continue"
            client.send(b"xyz")
            assert (await client.response())[2] == b"3"
        async with connected(server) as client:
            client.send(post(b"xyz", b"expect: a surprise"))
            await client.refused(http_errors.unsupported_expectation())


# Malformed HTTP


async def test_malformed_request_gets_an_error_and_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "edge")
    async with serving() as server, connected(server) as client:
        client.send(b"secret garbage\r\n\r\n")
        await client.refused(http_errors.malformed_request(), b"HTTP/1.0")
        (record,) = [r for r in caplog.records if r.name == "edge.http_protocol"]
        assert record.getMessage().startswith("a client sent no valid HTTP: Bad")
        assert record.levelno == logging.INFO
        assert not record.exc_info


@pytest.mark.parametrize("name", [b"x-a", b"target"])
async def test_line_may_have_about_8190_bytes(name: bytes) -> None:
    async with serving() as server, connected(server) as client:
        for more in (-10, 10):
            if name == b"x-a":
                line = b"x-a: " + b"v" * (8190 - 5 + more)
                client.send(GET[:-2] + line + b"\r\n\r\n")
            else:
                target = b"/plain?" + b"q" * (8190 - len(b"/plain?") + more)
                client.send(GET.replace(b"/plain", target))
            if more < 0:
                assert (await client.response())[2] == b"plain"
        await client.refused(http_errors.line_too_long(8190), b"HTTP/1.0")


async def test_response_reaches_a_client_that_still_sends() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"garbage\r\n\r\n")
        await client.response()
        async with asyncio.timeout(0.9):  # before the connection is closed
            assert await client.reader.read() == b""
        for _ in range(20):
            client.send(b"x" * 100_000 + b"\r\n" + GET)
            await client.writer.drain()
        await asyncio.sleep(0.1)
        (connection,) = server.connections
        assert not connection._messages
        await eventually(lambda: not server.connections)


async def test_client_that_sent_no_http_is_read_for_one_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleep, slept = asyncio.sleep, []

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    async with serving() as server, connected(server) as client:
        monkeypatch.setattr("edge.http_protocol.asyncio.sleep", note)
        client.send(b"garbage\r\n\r\n")
        await client.refused(http_errors.malformed_request(), b"HTTP/1.0")
        while not slept:
            await sleep(0.001)
        assert slept == [1.0]


async def test_response_to_malformed_http_in_tls_is_followed_by_the_goodbye() -> None:
    """TLS cannot close one side alone."""
    async with serving() as server:
        written = bytearray()
        transport = Mock(spec=asyncio.Transport)
        transport.can_write_eof.return_value = False
        transport.get_write_buffer_size.return_value = 0
        transport.is_closing.return_value = False
        transport.write.side_effect = written.extend
        transport.writelines.side_effect = lambda parts: written.extend(b"".join(parts))
        with socket.socket() as connection:
            transport.get_extra_info.side_effect = lambda name, default=None: (
                connection if name == "socket" else default
            )
            protocol: Any = server.runner.make_connection()
            protocol.connection_made(transport)
            protocol.data_received(b"garbage\r\n\r\n")
            await eventually(lambda: http_errors.malformed_request().body() in bytes(written))
            await asyncio.sleep(0.5)
            assert not transport.close.called
            await eventually(lambda: transport.close.called)
            assert not transport.write_eof.called
            protocol.connection_lost(None)


@pytest.mark.parametrize("read_first", [True, False])
async def test_body_whose_framing_breaks_is_refused_at_once(
    read_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(body_seconds=60.0) as server, connected(server) as client:
        client.send(CHUNKED)
        if read_first:
            client.send(b"3\r\nxyz\r\n")
            await server.began.wait()
        client.send(b"zz\r\n")
        line, headers, body = await client.response()
        assert line.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        assert headers["connection"] == "close"
        assert body == http_errors.malformed_request().body()
        assert (await client.closed()) == b""
        await eventually(lambda: not server.connections)
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_broken_framing_behind_another_request_is_refused_after_its_response() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await server.began.wait()
        server.began.clear()
        client.send(CHUNKED + b"3\r\nxyz\r\n")
        await eventually(lambda: server.connections[0]._messages)
        client.send(b"zz\r\n")
        await eventually(lambda: len(server.connections[0]._messages) > 1)
        server.gate.set()
        assert (await client.response())[2] == b"slow"
        line, _, _ = await client.response()
        assert line.startswith(b"HTTP/1.1 400")
        await client.closed()


async def test_malformed_request_behind_a_complete_body_leaves_its_response_alone() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await server.began.wait()
        client.send(b"garbage\r\n\r\n")
        await asyncio.sleep(0.05)
        server.gate.set()
        assert (await client.response())[2] == b"slow"
        await client.refused(http_errors.malformed_request(), b"HTTP/1.0")


async def test_failure_outside_the_application_is_logged_and_a_500(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        raise RuntimeError("injected")

    async with serving() as server:
        assert server.runner.server is not None
        monkeypatch.setattr(server.runner.server, "request_handler", broken)
        async with connected(server) as client:
            client.send(GET)
            await client.refused(internal_error())
        (record,) = [r for r in caplog.records if r.name == "edge.http_protocol"]
        assert record.getMessage() == "a request failed outside the application"
        assert record.levelno == logging.ERROR
        assert record.exc_info


async def test_response_that_breaks_off_is_followed_by_nothing() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"GET /cut HTTP/1.1\r\nhost: x\r\n\r\n")
        data = await client.closed()
        assert data.startswith(b"HTTP/1.1 200")
        assert data.endswith(b"1\r\nx\r\n")


async def test_handler_whose_client_has_left_is_counted_once() -> None:
    async with serving() as server, connected(server) as client:
        client.send(b"GET /gone HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.closed()
        server.app[EDGE].metrics.responded.assert_called_once_with("GET", "/gone", CLIENT_LEFT)  # type: ignore[attr-defined]


def test_error_after_a_part_of_a_response_ends_the_connection() -> None:
    async def main() -> None:
        async with serving() as server:
            protocol: Any = server.runner.make_connection()
            request = SimpleNamespace(writer=SimpleNamespace(output_size=1))
            with pytest.raises(ConnectionError):
                protocol.handle_error(request, 500, RuntimeError())

    asyncio.run(main())


# Timeouts


async def test_incomplete_head_received_at_once_times_out() -> None:
    config = EdgeConfig(head_seconds=0.05)
    runner = EdgeRunner(Server(config).app, config, MemoryBudget(1 << 30))
    await runner.setup()
    closed = asyncio.Event()
    with socket.socket() as connection:
        transport = Mock(spec=asyncio.Transport)
        transport.get_extra_info.return_value = connection
        transport.close.side_effect = closed.set
        assert runner.server is not None
        protocol = runner.server()
        protocol.connection_made(transport)
        protocol.data_received(b"GET /")
        async with asyncio.timeout(10):
            await closed.wait()
        protocol.connection_lost(None)
    await runner.cleanup()


@pytest.mark.parametrize("first", [b"", GET], ids=["first request", "second request"])
async def test_head_that_comes_byte_by_byte_is_closed(first: bytes) -> None:
    async with serving(head_seconds=0.3) as server, connected(server) as client:
        if first:
            client.send(first[:10])
            await asyncio.sleep(0.02)
            client.send(first[10:])
            await client.response()
        await asyncio.sleep(0.5)  # no head has begun
        client.send(b"G")
        began = asyncio.get_running_loop().time()
        for byte in (b"E", b"T"):
            await asyncio.sleep(0.1)
            client.send(byte)
        assert await client.closed() == b""
        assert asyncio.get_running_loop().time() - began < 5


async def test_time_of_a_head_ends_with_it() -> None:
    async with serving(head_seconds=0.2) as server, connected(server) as client:
        for part in (GET[:10], GET[10:20], GET[20:]):
            client.send(part)
            await asyncio.sleep(0.02)
        assert (await client.response())[2] == b"plain"
        await asyncio.sleep(0.4)
        client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n")
        await asyncio.sleep(0.02)
        client.send(b"\r\n")
        await server.began.wait()
        client.send(b"G")  # a head that begins meanwhile has the keep-alive timeout
        await asyncio.sleep(0.4)
        server.gate.set()
        assert (await client.response())[2] == b"slow"
        client.send(GET[1:])
        assert (await client.response())[2] == b"plain"


async def test_client_that_left_has_no_timer(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(head_seconds=0.1) as server:
        async with connected(server) as client:
            client.send(b"G")
            await eventually(lambda: any(c._head_timer for c in server.connections))
            (connection,) = server.connections
            timer = connection._head_timer
        await eventually(lambda: not server.connections)
        assert timer.cancelled()


async def test_idle_connection_is_kept_for_75_seconds() -> None:
    async with serving() as server:
        protocol: Any = server.runner.make_connection()
        assert protocol.keepalive_timeout == 75.0


async def test_handler_of_a_client_that_left_is_cancelled() -> None:
    async with serving() as server:
        async with connected(server) as client:
            client.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            await server.began.wait()
        async with asyncio.timeout(10):
            await server.cancelled.wait()


# Stops


async def test_handlers_have_one_second_after_the_last_response_of_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds: list[float | None] = []
    async with serving() as server:
        assert server.runner.server is not None
        shutdown = server.runner.server.shutdown

        async def note(timeout: float | None = None) -> None:
            seconds.append(timeout)
            await shutdown(timeout)

        monkeypatch.setattr(server.runner.server, "shutdown", note)
    assert seconds == [1.0]


async def test_runner_makes_connections_only_after_its_setup() -> None:
    runner = EdgeRunner(web.Application(), EdgeConfig(), MemoryBudget(1 << 30))
    with pytest.raises(RuntimeError, match="not set up"):
        runner.make_connection()
    assert runner.busy == 0


async def test_connection_is_busy_from_its_request_to_the_last_byte() -> None:
    async with serving() as server, connected(server) as first, connected(server) as second:
        first.send(GET)
        await first.response()
        await eventually(lambda: server.runner.busy == 0)
        assert len(server.connections) == 2
        first.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await server.began.wait()
        assert server.runner.busy == 1
        second.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await eventually(lambda: server.runner.busy == 2)
        await asyncio.sleep(0.2)
        assert server.runner.busy == 2  # the client does not read
        server.gate.set()
        await first.response()
        await eventually(lambda: server.runner.busy == 1)
        assert len((await second.response())[2]) == 16 * 1024 * 1024
        await eventually(lambda: server.runner.busy == 0)


async def test_stop_fails_bodies_that_are_still_coming_and_nothing_else() -> None:
    async with serving() as server:
        async with (
            connected(server) as coming,
            connected(server) as idle,
            connected(server) as complete,
        ):
            idle.send(GET)
            await idle.response()
            coming.send(post(b"xy", length=3))
            await server.began.wait()
            server.began.clear()
            complete.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            await server.began.wait()
            server.runner.fail_bodies(overloaded())
            line, _, body = await coming.response()
            assert line.startswith(b"HTTP/1.1 503")
            assert body == overloaded().body()
            server.gate.set()
            assert (await complete.response())[2] == b"slow"
            idle.send(GET)
            assert (await idle.response())[2] == b"plain"


async def test_body_does_not_resume_a_socket_that_was_not_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resumed: list[object] = []
    resume = web.RequestHandler.resume_reading

    def note(self: web.RequestHandler, *arguments: Any) -> None:
        resumed.append(self)
        resume(self, *arguments)

    monkeypatch.setattr(web.RequestHandler, "resume_reading", note)
    async with serving() as server, connected(server) as client:
        client.send(post(b"x" * 10))
        assert (await client.response())[2] == b"10"
        assert resumed == []
        size = 8 * 1024 * 1024
        client.send(post(b"x" * size, b"x-wait: 1"))
        await eventually(lambda: any(c._reading_paused for c in server.connections))
        server.gate.set()
        assert (await client.response())[2] == str(size).encode()
        assert resumed
