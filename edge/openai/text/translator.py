"""The faces of the answer side, the same for chat and for legacy completions.

A request has one or more sources (calls to the inference service): one for a chat, one a prompt
for completions. What each says is handed over in order, with the source's number.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

from msgspec import Meta, Struct

from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    GenerateResponse,
)
from isthmus.v1.usage_pb2 import Admitted

# For a service that names none: clients may count on a text.
UNKNOWN_FINGERPRINT: Final = "fp_unknown"


class Identity(Struct, frozen=True, gc=False):
    """What an answer cannot make itself.

    Attributes:
        completion_id: "chatcmpl-..." or "cmpl-...".
        created: Seconds since the Unix epoch.
    """

    completion_id: str
    created: int


class StreamTranslator(Protocol):
    """Turns what sources say into events; every method but `admit` returns bytes to send now."""

    def admit(self, source: int, admitted: Admitted) -> None:
        """Comes before anything else of that source."""
        ...

    def start(self) -> bytes:
        """Opens all choices; once, after every source is admitted."""
        ...

    def text(self, source: int, text: str) -> bytes:
        """More text of the source's choice 0, with nothing beside it."""
        ...

    def part(self, source: int, response: GenerateResponse) -> bytes:
        """Anything else; `admitted` in it is ignored."""
        ...

    def end(self) -> bytes:
        """Closes the stream: usage if it was asked for, then [DONE].

        Where a choice never finished it is an error event instead, without [DONE].
        """
        ...


class ResponseTranslator(Protocol):
    """Gathers what sources say into one document."""

    def admit(self, source: int, admitted: Admitted) -> None:
        """Comes before anything else of that source."""
        ...

    def text(self, source: int, text: str) -> None:
        """More text of the source's choice 0, with nothing beside it."""
        ...

    def part(self, source: int, response: GenerateResponse) -> None:
        """Anything else; `admitted` in it is ignored."""
        ...

    def result(self) -> bytes:
        """The document.

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        ...


_FINISH_REASONS: Final[dict[int, str]] = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
    FINISH_REASON_CONTENT_FILTER: "content_filter",
}


_LEGACY_CALL: Final = "function_call"


ChatFinishReason = Annotated[
    str, Meta(extra_json_schema={"enum": [*_FINISH_REASONS.values(), _LEGACY_CALL]})
]


def finish_reason(reason: int, *, legacy_functions: bool = False) -> str:
    """OpenAI's word for the end of a choice; a reason of a newer contract is a plain stop."""
    if legacy_functions and reason == FINISH_REASON_TOOL_CALLS:
        return _LEGACY_CALL
    return _FINISH_REASONS.get(reason, "stop")
