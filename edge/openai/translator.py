"""The interface between an exchange and the endpoints: messages in, bytes of a response out.

A request has one or more sources, numbered from 0. A source is one call to the inference service:
a completion has one for each prompt, other requests have one. A Translator makes the response of
the whole request, and has a SourceTranslator for each source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, TypeVar

from edge.openai import sse
from edge.openai.errors import OpenAIError
from edge.openai.pieces import Output
from isthmus.v1.usage_pb2 import Admitted

Part = TypeVar("Part")
Part_contra = TypeVar("Part_contra", contravariant=True)


class SourceTranslator(Protocol[Part_contra]):
    """Translates the messages of one call, in their order. A document returns b"" for each."""

    def admit(self, part: Part_contra | None) -> Admitted | None:
        """The admission in a message; None if it has none.

        Called for each message up to the first admission. `part` is None if the service, against
        the contract, sends text before any message.
        """
        ...

    def text(self, text: str) -> Output:
        """Translates plain text of the source's choice 0."""
        ...

    def part(self, part: Part_contra) -> Output:
        """Translates all fields of a message except its admission."""
        ...


class Translator(ABC, Generic[Part]):
    """Makes the response of one request."""

    # isinstance is slow for abstract classes, and each request asks.
    is_stream: ClassVar[bool] = False

    @abstractmethod
    def source(self, number: int) -> SourceTranslator[Part]: ...


class StreamTranslator(Translator[Part]):
    """Makes one event stream."""

    is_stream = True

    @abstractmethod
    def opening(self) -> bytes:
        """The events before any output. Called once, when every source is admitted or has ended."""

    @abstractmethod
    def closing(self) -> Output:
        """The events after all output, and [DONE] if the endpoint has it. Called once.

        Raises:
            OpenAIError: 500, the sources ended without an error but their output is incomplete.
        """

    def failed(self, error: OpenAIError) -> bytes:
        """The last event of a stream that fails after its 200."""
        return sse.error_event(error)


class Document(Translator[Part]):
    """Makes one document as a whole."""

    @abstractmethod
    def document(self) -> bytes:
        """The JSON of the response. Called once, after every source has ended.

        Raises:
            OpenAIError: 500, the sources ended without an error but their output is incomplete.
        """
