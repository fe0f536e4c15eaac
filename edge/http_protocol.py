"""The HTTP server beneath the application: aiohttp's connections with other limits and errors.

How aiohttp serves a connection. `web.RequestHandler` is the asyncio protocol. Its `data_received`
parses bytes and queues each request, or the parser's error, in `_messages`. One task for each
connection takes them in turn: it makes a request object, awaits the server's handler, sends the
response, and then reads the rest of the body for `_lingering_time`. While it waits for the next
request, it waits on `_waiter`. The server's handler is usually `web.Application`: it resolves the
route, checks the Expect header, and runs the middleware and the route's handler.

What is changed, and where. aiohttp has no hook for most of it, so `_Server` and `_Connection`
subclass its classes:

  aiohttp alone                                     here
  ------------------------------------------------  ----------------------------------------------
  malformed HTTP gets a text or HTML page, and a    OpenAI's error object, and one log line without
  traceback in the log                              the client's bytes (`handle_error`)
  the head of a request may take as long as the     closed `head_seconds` after the head's first
  keep-alive timeout                                byte (`data_received`)
  a handler waits on for a body whose framing is    its read fails at once, so the response is a 400
  broken                                            (`_fail_body`)
  after a parser error the socket is closed; a      the sending side is closed first and bytes are
  client that still sends gets a reset and never    read for LINGER_SECONDS (`finish_response`)
  sees the response
  a request in HTTP/2.0 gets an answer in HTTP/2.0  400 in HTTP/1.0 (`_new_request`)
  an Expect header other than 100-continue gets a   OpenAI's error object (`_handle_by_application`)
  417 page before any middleware runs
  every request passes several coroutines until     a route without variables is found in a dict
  its route is resolved                             (`_handle`)
  every body resumes reading from the socket        only if reading was paused (`resume_reading`)

Clients that read too slowly are dropped in client_bounds.py. The overrides depend on private
attributes of aiohttp. tests/unit/test_http_protocol.py and tests/contract/test_http_faults.py fail
if a new version changes their meaning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader

from contract.memory import MemoryBudget
from edge.client_bounds import BoundedConnection
from edge.config import EdgeConfig
from edge.middleware.serve import SERVER, error_response, new_request_id, serve
from edge.openai.errors import OpenAIError, internal_error
from edge.openai.errors import http as http_errors
from edge.state import EDGE, EdgeRequest

log = logging.getLogger(__name__)

# Time that an idle connection waits for its next request before it is closed.
KEEP_ALIVE_SECONDS = 75.0
# Time that the rest of a refused request is read, so that its sender sees the response.
LINGER_SECONDS = 1.0
# Longest request line or header line; a longer one is a 400.
MAX_LINE_BYTES: Final = 8190

_SUPPORTED_VERSIONS: Final = (HttpVersion10, HttpVersion11)
_UNSUPPORTED_VERSION: Final = web.RequestKey("unsupported_version", bool)


class EdgeRunner(web.AppRunner):
    """Runs an application behind `_Server` and `_Connection`.

    `config` bounds each connection, `memory` all of them together.
    """

    def __init__(self, app: web.Application, config: EdgeConfig, memory: MemoryBudget) -> None:
        super().__init__(app, shutdown_timeout=1.0)
        self._config = config
        self._memory = memory

    def make_connection(self) -> asyncio.Protocol:
        """The protocol of a new connection.

        Raises:
            RuntimeError: The runner is not set up.
        """
        if self.server is None:
            raise RuntimeError("the runner is not set up")
        return self.server()

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self.app, self._config, self._memory)

    @property
    def busy(self) -> int:
        """Connections with a request, or with bytes that the kernel has not taken yet."""
        return sum(connection.busy for connection in self._connections())

    def fail_bodies(self, error: OpenAIError) -> None:
        """Fails every request whose body is still coming."""
        for connection in self._connections():
            connection.fail_body(error)

    def _connections(self) -> Iterator[_Connection]:
        if self.server is not None:
            for connection in self.server.connections:
                if isinstance(connection, _Connection):
                    yield connection


class _Server(web.Server):
    """Makes the connections and passes their requests to the application."""

    def __init__(
        self,
        server: web.Server,
        app: web.Application,
        config: EdgeConfig,
        memory: MemoryBudget,
    ) -> None:
        # handler_cancellation: a disconnect cancels the handler, which stops its engine work.
        super().__init__(self._handle, request_factory=self._new_request, handler_cancellation=True)
        self._server = server
        self._config = config
        self._memory = memory
        self._app, self._edge = app, app[EDGE]
        self._matches = _plain_matches(app)

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._config, self._memory)

    def _new_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Any,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        if not (supported := message.version in _SUPPORTED_VERSIONS):
            # A response repeats the version, and no client reads "HTTP/2.0 400".
            message = message._replace(version=HttpVersion10)
        make: Any = self._app._make_request
        request: EdgeRequest = make(message, payload, protocol, writer, task, EdgeRequest)
        request.edge, request.connection = self._edge, protocol
        if not supported:
            request[_UNSUPPORTED_VERSION] = True
        return request

    def _handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        match = self._matches.get((request.method, request.rel_url.path_safe))
        if (
            match is None
            or request.version != HttpVersion11
            or "expect" in request.headers
            or not isinstance(request, EdgeRequest)
        ):
            return self._handle_by_application(request)
        # The same as web.Application._handle, but the route is already known.
        request._match_info = match
        return serve(request, match.handler)

    async def _handle_by_application(self, request: web.BaseRequest) -> web.StreamResponse:
        if _UNSUPPORTED_VERSION in request:
            return self.refusal(request, http_errors.malformed_request())
        try:
            return await self._server.request_handler(request)
        except web.HTTPExpectationFailed:
            return self.refusal(request, http_errors.unsupported_expectation())

    def refusal(self, request: web.BaseRequest, error: OpenAIError) -> web.Response:
        """An error response that passes no middleware and ends its connection; it is counted."""
        response = error_response(error)
        headers = {"x-request-id": new_request_id(), "server": SERVER, "connection": "close"}
        response.headers.update(headers)
        response.force_close()
        if not (isinstance(request, EdgeRequest) and request.started):  # Else `serve` counts it.
            self._edge.metrics.responded("", "", response.status)
        return response


class _Connection(BoundedConnection):
    """One connection of a client."""

    __slots__ = ("_head_timer", "_parser_failed", "_refusal")

    def __init__(self, server: _Server, config: EdgeConfig, memory: MemoryBudget) -> None:
        options: dict[str, Any] = {"access_log": None}
        super().__init__(
            config,
            memory,
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            auto_decompress=False,  # read_body refuses compressed bodies.
            **options,
        )
        self._refusal = server.refusal
        self._parser_failed = False
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being served, or a response is not with the kernel yet.

        The connection's task serves unless it has ended or waits for the next request. A response
        may still be made when its handler has returned: a file is read, a matrix is rendered.
        """
        task = self._task_handler
        idle = self._waiter is not None and not self._waiter.done()
        return self.unsent or (task is not None and not task.done() and not idle)

    def fail_body(self, error: OpenAIError) -> None:
        """Makes the handler's read of an incomplete body raise the error."""
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(error)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Does nothing unless reading was paused: aiohttp calls this for every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Bounds the time of a head from its first byte; fails a body whose framing is broken."""
        super().data_received(data)
        idle = self._waiter is not None and not self._waiter.done()
        if idle or not self._request_count:
            # No request runs or is queued, so these bytes began or continued a head. A head that
            # is sent while a request still runs has the keep-alive timeout instead.
            if data and self._head_timer is None:
                self._head_timer = self._loop.call_later(
                    self._config.head_seconds, self.force_close
                )
            return
        self._stop_head_timer()
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._parser_failed = True
            self._fail_body()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends a response; after a parser error, reads on so that the client can see it.

        Closing the socket while the client still sends would reset the connection, and the client
        would lose the response.
        """
        finished = await super().finish_response(request, resp, start_time)
        self.holding.release()
        if self._parser_failed and not resp.keep_alive and self.transport is not None:
            self.close()
            # TLS cannot end one side alone; its goodbye is sent when the connection is closed.
            if self.transport.can_write_eof():
                self.transport.write_eof()
            await asyncio.sleep(LINGER_SECONDS)
        return finished

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stops the timer of an incomplete head."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Makes the response to a parser error, 400, or to any other failure, 500.

        Raises:
            ConnectionError: A part of another response is already sent.
        """
        if request.writer.output_size:
            raise ConnectionError("a response was interrupted; another cannot follow it")
        if isinstance(exc, HttpProcessingError):
            # Neither a traceback nor the bytes: anybody can send these, and they may hold a key.
            log.info("a client sent no valid HTTP: %s", type(exc).__name__)
            if isinstance(exc, LineTooLong):
                error = http_errors.line_too_long(MAX_LINE_BYTES)
            else:
                error = http_errors.malformed_header(exc.message)
        else:
            log.error("a request failed outside the application", exc_info=exc)
            error = internal_error()
        return self._refusal(request, error)

    def _fail_body(self) -> None:
        """Fails the body that the parser was reading: its handler would wait forever."""
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
    """The routes whose paths have no variables, by (method, path)."""
    matches = {}
    for route in app.router.routes():
        if isinstance(route.resource, web.PlainResource):
            match = web.UrlMappingMatchInfo({}, route)
            match.add_app(app)
            match.freeze()
            matches[route.method, route.resource.canonical] = match
    return matches
