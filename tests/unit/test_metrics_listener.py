"""The listener of GET /metrics serves a bounded number of clients at a time."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import ExitStack

import pytest

from contract import metrics_listener as listener


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text: bytes = response.read()
        return text


def test_clients_above_the_limit_are_refused_until_others_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "MOST_CLIENTS", 3)
    threads = threading.active_count()
    with listener.metrics_listener("127.0.0.1:0", lambda: b"x 1\n") as port:
        with ExitStack() as clients:
            silent = [
                clients.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                for _ in range(5)
            ]
            assert [client.recv(1) for client in silent[3:]] == [b"", b""]
            assert threading.active_count() == threads + 1 + 3
            # The others are served as ever.
            silent[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert silent[0].recv(100).startswith(b"HTTP/1.0 200 OK")
        until = time.monotonic() + 10
        while threading.active_count() > threads + 1:
            assert time.monotonic() < until
            time.sleep(0.01)
        for _ in range(5):
            assert scraped(port) == b"x 1\n"


def test_clients_without_a_thread_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MOST_CLIENTS", 1)
    with listener.metrics_listener("127.0.0.1:0", lambda: b"x 1\n") as port:

        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), 10) as client:
                    assert client.recv(1) == b""
        assert scraped(port) == b"x 1\n"
