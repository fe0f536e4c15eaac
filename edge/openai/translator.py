"""The interface between an exchange and the endpoints: output in, bytes of a response out.

A request has one or more sources, numbered from 0. A source is one call to the inference
service: the only one of a chat, an embeddings or an images request, and one for each prompt of a
completion. Each source has a SourceTranslator; what belongs to the response as a whole is the
translator's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from edge.openai.pieces import Output
from isthmus.v1.usage_pb2 import Admitted

Part = TypeVar("Part")
Part_contra = TypeVar("Part_contra", contravariant=True)


class SourceTranslator(Protocol[Part_contra]):
    """Translates the messages of one call, in their order."""

    def admit(self, part: Part_contra | None) -> Admitted | None:
        """Begins with the first message and returns its admission; None where it has none.

        Called until a message had an admission. A service that sends text before any message
        breaks the contract; then `part` is None, and the response is made without the admission.
        """
        ...

    def text(self, text: str) -> Output:
        """Translates plain text of the source's choice 0. A document collects it: b""."""
        ...

    def part(self, part: Part_contra) -> Output:
        """Translates everything in a message but its admission. A document collects it: b""."""
        ...


class Translator(ABC, Generic[Part]):
    """Makes one document; the handler takes it from the endpoint's class when all is collected."""

    @abstractmethod
    def source(self, number: int) -> SourceTranslator[Part]:
        """The translator of one source."""


class StreamTranslator(Translator[Part]):
    """Makes one event stream."""

    @abstractmethod
    def opening(self) -> bytes:
        """The events before any output. Called once, when every source is admitted or has ended."""

    @abstractmethod
    def closing(self) -> Output:
        """The events after all output, [DONE] included where the endpoint has it. Called once.

        Raises:
            OpenAIError: 500, the sources ended well but their output is incomplete.
        """
