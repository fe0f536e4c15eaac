"""What chat and completions responses share: ids, fingerprints and finish reasons."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

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
