"""What the benchmark measures: a gateway between its load client and a token source."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Source:
    """What the token source behind a gateway does.

    Attributes:
        tokens: Of every answer, streamed or plain. Each is a word and one space, so that tokens
            that were merged into one piece can still be counted.
        step_seconds: Between two steps of an answer, for all running answers at once as an engine
            steps; 0 is as fast as it can.
        tokens_per_step: That an answer gets in one step, as one piece.
        dimensions: Of the vectors of an embedding model beside the text model; 0 is no such model.
    """

    tokens: int = 128
    step_seconds: float = 0.0
    tokens_per_step: int = 1
    dimensions: int = 0


@dataclass(frozen=True)
class Running:
    """A started gateway, ready for requests.

    Attributes:
        url: Its base, without /v1 and without a slash at the end.
        model: The text model to ask for.
        groups: Root process ids of "edge" (the gateway itself), "worker" (the token source and
            its front, where it speaks gRPC) and "source" (a plain HTTP token source). CPU time
            and memory are counted over each root and its descendants.
        key: API key to send, where one is needed.
        embedding_model: The embedding model to ask for, where there is one.
        start_seconds: From the gateway's start to its first answer, with its source there
            already; None where it was not measured.
    """

    url: str
    model: str
    groups: dict[str, tuple[int, ...]]
    key: str = ""
    embedding_model: str = ""
    start_seconds: float | None = None


class Subject(Protocol):
    """A gateway that can be started before a token source.

    Attributes:
        name: As the tables show it.
    """

    @property
    def name(self) -> str: ...

    def start(self, source: Source) -> AbstractContextManager[Running]:
        """Starts everything, waits until it answers, and stops it all at the end."""
        ...
