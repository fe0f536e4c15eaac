"""An HTTP server that streams ready-made chunks: the subject "direct", without a gateway.

`python -m bench.direct --port PORT --tokens N --step SECONDS --per-step N` renders the chunks when
it starts and writes each with one call. Its figures are the cost of client, kernel and loopback
alone, and show how much the load client can receive.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import uvloop

from bench.processes import free_port, started
from bench.subject import Running, Source

_READY_SECONDS: Final = 30
_EVENTS_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Responses:
    """The bytes of all responses."""

    def __init__(self, tokens: int, tokens_per_step: int = 1) -> None:
        words = [f"w{position} " for position in range(tokens)]
        self.chunks = [
            _chunk({"content": "".join(words[first : first + tokens_per_step])})
            for first in range(0, tokens, tokens_per_step)
        ]
        self.start = _EVENTS_HEAD + _chunk({"role": "assistant", "content": ""})
        self.end = _chunk({}, "stop") + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        self.plain = _document({**_HEAD, "object": "chat.completion", "choices": [choice]})
        self.health = _document({"status": "ok"})


_HEAD: Final[dict[str, Any]] = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "created": 1_700_000_000,
    "model": "direct",
    "system_fingerprint": "fp_direct",
}


def _chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    document = {**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return _framed(b"data: %b\n\n" % json.dumps(document, separators=(",", ":")).encode())


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _document(document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class Stepper:
    """Gives every open stream one chunk a step.

    Args:
        responses: The chunks.
        step_seconds: Time between two steps; 0 means one step in each turn of the event loop.
    """

    def __init__(self, responses: Responses, step_seconds: float) -> None:
        self.responses = responses
        self._step_seconds = step_seconds
        self._streams: dict[_Connection, int] = {}
        self._next_at = 0.0

    def add(self, stream: _Connection) -> None:
        """Begins a response."""
        if not self._streams:
            self._next_at = asyncio.get_running_loop().time()
            self._schedule()
        self._streams[stream] = 0

    def remove(self, stream: _Connection) -> None:
        """Forgets a stream."""
        self._streams.pop(stream, None)

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._step_seconds:
            loop.call_soon(self._step)
            return
        # The schedule is fixed, so that the duration of a step does not slow the pace.
        self._next_at = max(self._next_at + self._step_seconds, loop.time())
        loop.call_at(self._next_at, self._step)

    def _step(self) -> None:
        chunks = self.responses.chunks
        for stream, position in list(self._streams.items()):
            if stream.paused:
                continue
            if position == len(chunks):
                stream.write(self.responses.end)
                self.remove(stream)
                continue
            stream.write(chunks[position])
            self._streams[stream] = position + 1
        if self._streams:
            self._schedule()


class _Connection(asyncio.Protocol):
    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._stepper.remove(self)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self._received = b""
        responses = self._stepper.responses
        if head.startswith(b"GET"):
            self.write(responses.health)
        elif b'"stream": true' in body or b'"stream":true' in body:
            self.write(responses.start)
            self._stepper.add(self)
        else:
            self.write(responses.plain)


class Direct:
    """The subject "direct": a token source without a gateway."""

    name = "direct"

    @contextlib.contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the source."""
        port = free_port()
        command = [sys.executable, "-m", "bench.direct", "--port", str(port)]
        command += ["--tokens", str(source.tokens), "--step", str(source.step_seconds)]
        command += ["--per-step", str(source.tokens_per_step)]
        with started("direct", command) as process:
            process.wait_until_listening(port, _READY_SECONDS)
            groups: dict[str, tuple[int, ...]] = {"source": (process.pid,)}
            yield Running(f"http://127.0.0.1:{port}", "direct", groups)


async def _serve(port: int, stepper: Stepper) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(stepper), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serves until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--step", type=float, default=0.0, help="seconds between steps; 0: none")
    parser.add_argument("--per-step", type=int, default=1, help="tokens in a chunk")
    arguments = parser.parse_args()
    responses = Responses(arguments.tokens, arguments.per_step)
    uvloop.run(_serve(arguments.port, Stepper(responses, arguments.step)))


if __name__ == "__main__":
    main()
