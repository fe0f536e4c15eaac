"""The state that the handlers and middleware of one edge process share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from contract.memory import MemoryBudget
from edge.client_bounds import BoundedConnection
from edge.config import EdgeConfig
from edge.image_files import FileStore
from edge.metrics import EdgeMetrics
from edge.metrics_text import MetricsText
from edge.openai.errors import OpenAIError
from edge.response_store import ResponseStore
from edge.upstream.router import Router
from keys import KeyStore, WrongKeys

if TYPE_CHECKING:
    from edge.observer import Observer, Outcome


class RunningExchange(Protocol):
    """A request whose response is not complete."""

    def fail(self, error: OpenAIError) -> None:
        """Ends it with an error: as the status, or as an event if the 200 is already sent."""


@dataclass(slots=True)
class Edge:
    """One edge process.

    Attributes:
        config: Its configuration.
        router: Its upstreams and their replicas.
        keys: The API keys that callers need; None if the edge is open.
        wrong_keys: Counts the wrong keys of each address.
        files: Images that are handed out by URL.
        draining: Whether the edge is stopping.
        requests: Number of handlers that run; their responses may still be on their way.
        memory: What all requests hold: their bodies and their unsent responses.
        exchanges: Exchanges whose response is not complete; a stop fails them.
        responses: Responses that are kept; None if none are.
        metrics: What is counted of it.
        metrics_text: Makes the text of GET /metrics.
        observer: Writes the access log and the spans; None if both are off.
        rendering: Held while one piece of a large embeddings response is rendered, so that each
            turn of the event loop renders at most one piece.
    """

    config: EdgeConfig
    router: Router
    keys: KeyStore | None
    files: FileStore
    memory: MemoryBudget
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
    draining: bool = False
    requests: int = 0
    exchanges: set[RunningExchange] = field(default_factory=set)
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)
    observer: Observer | None = None
    responses: ResponseStore | None = None
    metrics: EdgeMetrics = field(init=False)
    metrics_text: MetricsText = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = EdgeMetrics(self)
        self.metrics_text = MetricsText(self.metrics, self.config)


EDGE = web.AppKey("edge", Edge)


class EdgeRequest(web.Request):
    """An HTTP request, with what the edge knows of it.

    Attributes:
        edge: The process that serves it.
        connection: The connection that it came on.
        id: Its id; "" before `serve` runs.
        started: Monotonic seconds of its arrival; 0 before `serve` runs.
        principal: The id of the API key that it came with; "" if the edge is open.
        outcome: Its result, for the observer; None without one.
    """

    # With `python -X dev` aiohttp warns of any other attribute.
    ATTRS = web.Request.ATTRS | {"edge", "connection", "id", "started", "principal", "outcome"}

    edge: Edge
    connection: BoundedConnection
    id = ""
    started = 0.0
    principal = ""
    outcome: Outcome | None = None
