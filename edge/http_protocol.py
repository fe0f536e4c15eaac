"""HTTP beneath the application: what aiohttp refuses before a route is known, and who stalls.

aiohttp answers such faults with a page of its own and waits for a request's head as long as for
the next request. Here faults leave in OpenAI's envelope and heads have a time of their own. What
aiohttp offers no hook for is read from its connection's private members; the tests of this file
hold us to them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader

from edge.config import EdgeConfig
from edge.middleware.errors import error_response
from edge.middleware.response_headers import SERVER, new_request_id
from edge.middleware.serve import serve
from edge.openai.errors import OpenAIError, internal_error
from edge.openai.errors import http as http_errors

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75.0
# How long the rest of a refused body is read, so that its sender sees the answer.
LINGER_SECONDS = 1.0
MAX_LINE_BYTES: Final = 8190

_SPOKEN_VERSIONS: Final = (HttpVersion10, HttpVersion11)
_UNSPOKEN: Final = web.RequestKey("unspoken_version", bool)


class EdgeRunner(web.AppRunner):
    """Runs an application behind connections that keep the edge's bounds.

    Args:
        app: What answers.
        config: The bounds of heads and writes.
    """

    def __init__(self, app: web.Application, config: EdgeConfig) -> None:
        super().__init__(app, shutdown_timeout=1.0)
        self._config = config

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self.app, self._config)


class _Server(web.Server):
    """Makes the connections; stands between them and the application."""

    def __init__(self, application: web.Server, app: web.Application, config: EdgeConfig) -> None:
        # handler_cancellation: a client that leaves stops its engine work at once, plain requests
        # too.
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=True)
        self._application = application
        self._config = config
        self._matches = _plain_matches(app)

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._config)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        make = self._application.request_factory
        if message.version in _SPOKEN_VERSIONS:
            return make(message, payload, protocol, writer, task)
        # An answer takes over its request's version, and "HTTP/2.0 400" would be read by nobody.
        request = make(message._replace(version=HttpVersion10), payload, protocol, writer, task)
        request[_UNSPOKEN] = True
        return request

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        match = self._matches.get((request.method, request.rel_url.path_safe))
        if (
            match is None
            or request.version != HttpVersion11
            or "expect" in request.headers
            or not isinstance(request, web.Request)
        ):
            return self._answer_any(request)
        # What aiohttp's application does for it, without finding the route again.
        request._match_info = match
        return serve(request, match.handler)

    async def _answer_any(self, request: web.BaseRequest) -> web.StreamResponse:
        if _UNSPOKEN in request:
            return _refusal(http_errors.malformed_request())
        try:
            return await self._application.request_handler(request)
        except web.HTTPExpectationFailed:
            # aiohttp looks at Expect before any middleware.
            return _refusal(http_errors.unsupported_expectation())


class _Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_broken", "_config", "_head_timer")

    def __init__(self, server: _Server, config: EdgeConfig) -> None:
        options: dict[str, Any] = {"access_log": None}
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            # Compressed bodies are refused: nothing of them is worth unpacking.
            auto_decompress=False,
            **options,
        )
        self._config = config
        self._broken = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets the kernel drop a client that takes nothing of what is sent to it.

        This covers every answer, what the kernel itself has buffered, and connections that are
        closing, and costs a healthy client nothing. Other systems than Linux do not offer it.
        """
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(self._config.write_stall_seconds * 1000)
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Goes on reading; every body that is taken asks for it, paused or not."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Bounds the time of a head from its first byte; fails a body whose framing is broken."""
        super().data_received(data)
        waits = self._waiter is not None and not self._waiter.done()
        if waits or not self._request_count:
            # No request runs or waits to be run: these bytes began a head, or went on with it. What
            # a client sends ahead of an answer falls under keep-alive's bound instead.
            if data and self._head_timer is None:
                self._head_timer = self._loop.call_later(
                    self._config.head_seconds, self.force_close
                )
            return
        self._stop_head_timer()
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._broken = True
            self._fail_body()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Lets a client that still sends see why it is refused: a close would be a reset for it."""
        finished = await super().finish_response(request, resp, start_time)
        if self._broken and not resp.keep_alive and self.transport is not None:
            self.close()
            self.transport.write_eof()
            await asyncio.sleep(LINGER_SECONDS)
        return finished

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the head that will not come."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """What is no HTTP is a 400 and anything else a 500, in words of our own."""
        if request.writer.output_size:
            raise ConnectionError("half an answer is out; nothing can follow it")
        if isinstance(exc, HttpProcessingError):
            # No traceback and no bytes: anyone can send these, and they may hold a key.
            log.info("a client sent no valid HTTP: %s", type(exc).__name__)
            if isinstance(exc, LineTooLong):
                error = http_errors.line_too_long(MAX_LINE_BYTES)
            else:
                error = http_errors.malformed_request()
        else:
            log.error("a request failed outside the application", exc_info=exc)
            error = internal_error()
        return _refusal(error)

    def _fail_body(self) -> None:
        """The parser gave up: a handler that still reads a body would read in vain."""
        if len(self._messages) > 1:
            payload = self._messages[-2][1]
        elif self._current_request is not None:
            payload = self._current_request.content
        else:
            return
        if not payload.is_eof():
            payload.set_exception(web.RequestPayloadError())
            self._lingering_time = 0.0

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _plain_matches(app: web.Application) -> dict[tuple[str, str], web.UrlMappingMatchInfo]:
    """The routes whose paths have no variables, by method and path."""
    matches = {}
    for route in app.router.routes():
        if isinstance(route.resource, web.PlainResource):
            match = web.UrlMappingMatchInfo({}, route)
            match.add_app(app)
            match.freeze()
            matches[route.method, route.resource.canonical] = match
    return matches


def _refusal(error: OpenAIError) -> web.Response:
    """An answer that no middleware sees and that ends its connection."""
    response = error_response(error)
    response.headers.update(
        {"x-request-id": new_request_id(), "server": SERVER, "connection": "close"}
    )
    response.force_close()
    return response
