"""What handlers and middleware of one edge process share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from edge.config import EdgeConfig
from edge.image_files import FileStore
from edge.openai.errors import OpenAIError
from edge.upstream.router import Router
from keys import KeyStore


class RunningExchange(Protocol):
    """A request whose response is not complete."""

    def fail(self, error: OpenAIError) -> None:
        """Ends it with an error: a status, or an event where the 200 is out."""


@dataclass(slots=True)
class Edge:
    """One edge process.

    Attributes:
        config: How it behaves.
        router: Its upstreams.
        keys: Who may call; None leaves it open.
        files: Pictures that answers gave the address of.
        draining: Set once it takes no new connections.
        requests: Handlers that run now.
        exchanges: Those whose response is not complete.
        rendering: Held while a piece of a large answer is rendered: one in each turn of the loop.
    """

    config: EdgeConfig
    router: Router
    keys: KeyStore | None
    files: FileStore
    draining: bool = False
    requests: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    exchanges: set[RunningExchange] = field(default_factory=set)
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)


EDGE = web.AppKey("edge", Edge)
# Of a request: its id, and the id of the API key that it came with.
REQUEST_ID = web.RequestKey("request_id", str)
PRINCIPAL = web.RequestKey("principal", str)
