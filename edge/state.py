"""What handlers and middleware of one edge process share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from edge.config import EdgeConfig
from edge.openai.errors import OpenAIError
from edge.upstream.router import Router
from keys import KeyStore


class OpenStream(Protocol):
    """An event stream that is being written."""

    def fail(self, error: OpenAIError) -> None:
        """Ends it with an error event."""


@dataclass(slots=True)
class Edge:
    """One edge process.

    Attributes:
        config: How it behaves.
        router: Its upstreams.
        keys: Who may call; None leaves it open.
        draining: Set once it takes no new connections.
        requests: Handlers that run now.
        streams: Event streams that are open now.
    """

    config: EdgeConfig
    router: Router
    keys: KeyStore | None
    draining: bool = False
    requests: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    streams: set[OpenStream] = field(default_factory=set)


EDGE = web.AppKey("edge", Edge)
# Of a request: its id, and the id of the key that it came with.
REQUEST_ID = web.RequestKey("request_id", str)
PRINCIPAL = web.RequestKey("principal", str)
