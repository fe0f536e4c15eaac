"""The measured things: a gateway between the load client and a token source."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Source:
    """The behaviour of the token source behind a gateway.

    Attributes:
        tokens: Tokens of every response. Each is a word and a space, so that the client can count
            them in joined content.
        step_seconds: Time between two steps. As in an engine, a step gives all running responses
            their next tokens. 0 means as fast as possible.
        tokens_per_step: Tokens that a response gets in one step, in one chunk.
        dimensions: Dimensions of an embedding model beside the text model; 0 means no such model.
    """

    tokens: int = 128
    step_seconds: float = 0.0
    tokens_per_step: int = 1
    dimensions: int = 0


@dataclass(frozen=True)
class Running:
    """A started gateway, ready for requests.

    Attributes:
        url: Its base URL, without /v1 and without a slash at the end.
        model: The name of the text model.
        groups: Ids of the root processes of "edge" (the gateway), "worker" (a token source with
            gRPC, and its front) and "source" (a token source with HTTP). CPU time and memory are
            those of each root and its descendants.
        key: API key; "" if none is needed.
        embedding_model: The name of the embedding model; "" without one.
        start_seconds: Time from the gateway's start to its first response, with the source
            already running; None if it was not measured.
    """

    url: str
    model: str
    groups: dict[str, tuple[int, ...]]
    key: str = ""
    embedding_model: str = ""
    start_seconds: float | None = None


class Subject(Protocol):
    """A gateway that the benchmark can start.

    Attributes:
        name: Its name in the tables.
    """

    @property
    def name(self) -> str: ...

    def start(self, source: Source) -> AbstractContextManager[Running]:
        """Starts source and gateway, waits for a first response, and stops both at the end."""
        ...
