"""Server-sent events as OpenAI writes them: one `data: ` line of JSON and one empty line."""

from __future__ import annotations

from typing import Final

from edge.openai.errors import OpenAIError

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
HEAD: Final = b"data: "
TAIL: Final = b"\n\n"
DONE: Final = b"data: [DONE]\n\n"
# A comment between events, for proxies that close silent connections.
KEEP_ALIVE: Final = b": keep-alive\n"


def event(data: bytes) -> bytes:
    """One event; `data` is JSON without line breaks."""
    return b"".join((HEAD, data, TAIL))


def named_head(name: str) -> bytes:
    """How an event of this name begins; JSON without line breaks and `TAIL` follow."""
    return b"event: %b\n%b" % (name.encode(), HEAD)


def error_event(error: OpenAIError) -> bytes:
    """The last event of a stream that failed after its 200; [DONE] never follows it."""
    return event(error.body())
