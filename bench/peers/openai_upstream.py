"""Starts the OpenAI-like token source that stands behind gateways whose upstreams use HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.processes import free_port, started
from bench.subject import Source

_READY_SECONDS: Final = 30


@dataclass(frozen=True)
class TokenSource:
    """A started source.

    Attributes:
        url: Its base URL, without /v1.
        pid: Its process.
    """

    url: str
    pid: int


@contextmanager
def token_source(source: Source) -> Iterator[TokenSource]:
    """Runs a source until the context ends."""
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.openai_source", str(port)]
    command += [str(source.tokens), str(source.step_seconds), str(source.tokens_per_step)]
    with started("openai-source", command) as program:
        program.wait_until_listening(port, _READY_SECONDS)
        yield TokenSource(f"http://127.0.0.1:{port}", program.pid)
