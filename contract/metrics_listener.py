"""GET /metrics on a listener of its own. It wants no key: operators open it to their network only.

Threads serve it, so a slow reader holds up nothing else.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from contract.metrics import CONTENT_TYPE

# Seconds that a client has for its request, and for reading each piece of the response.
_CLIENT_SECONDS: Final = 10.0
# Clients that are served at a time; others are refused.
MOST_CLIENTS: Final = 64
# Seconds between two looks whether the listener should close.
_POLL_SECONDS: Final = 0.05


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing: scrapers come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listen: str, *, share_port: bool) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.allow_reuse_port = share_port
        self._places = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__((host, int(port)), _Handler)

    def server_bind(self) -> None:
        """Binds without looking up the machine's name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a client in a thread of its own, or refuses it."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # The machine has no thread left.
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs nothing: the client has left."""


@contextmanager
def metrics_listener(
    listen: str | None, text: Callable[[], bytes], *, share_port: bool = False
) -> Iterator[int]:
    """Serves the metrics while the context is open; yields the port, 0 for none.

    Args:
        listen: HOST:PORT; port 0 takes a free one. None serves nothing.
        text: Makes the metrics; called from other threads.
        share_port: Whether other processes may listen on the port, too.

    Raises:
        OSError: The address cannot be bound.
    """
    if listen is None:
        yield 0
        return

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Only GET /metrics is here.\n"]
        start("200 OK", [("Content-Type", CONTENT_TYPE)])
        return [text()]

    with _Server(listen, share_port=share_port) as server:
        server.set_app(answer)
        thread = threading.Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
