"""What chat and completions responses share: ids, fingerprints, finish reasons and usage."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from isthmus.v1 import usage_pb2
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
)

# The system_fingerprint of a service that sends none; clients may rely on a non-empty string.
UNKNOWN_FINGERPRINT: Final = "fp_unknown"


class Identity(Struct, frozen=True, gc=False):
    """The random and the timed part of a response, which a pure translator cannot make.

    Attributes:
        completion_id: "chatcmpl-..." or "cmpl-...".
        created: Seconds since the Unix epoch.
    """

    completion_id: str
    created: int


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


class PromptTokensDetails(Struct):
    """Of the prompt's tokens."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct):
    """Of the answer's tokens."""

    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct):
    """Always whole: details are objects, never null."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class UsageSum:
    """The sum over the sources of a request."""

    def __init__(self) -> None:
        self._prompt = self._completion = self._cached = self._reasoning = 0

    def add(self, usage: usage_pb2.Usage) -> None:
        """Adds one source's counts."""
        self._prompt += usage.prompt_tokens
        self._completion += usage.completion_tokens
        self._cached += usage.cached_tokens
        self._reasoning += usage.reasoning_tokens

    def total(self) -> Usage:
        """The sum so far."""
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._reasoning),
        )

    def json(self) -> bytes:
        """The sum so far, encoded."""
        return msgspec.json.encode(self.total())
