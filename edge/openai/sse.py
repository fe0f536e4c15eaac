"""Server-sent events as OpenAI writes them: one `data: ` line of JSON and one empty line."""

from __future__ import annotations

from typing import Final

from edge.openai.errors import OpenAIError

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
HEAD: Final = b"data: "
TAIL: Final = b"\n\n"
DONE: Final = b"data: [DONE]\n\n"
# A comment, which clients skip. It keeps proxies from closing a silent connection.
KEEP_ALIVE: Final = b": keep-alive\n"


def error_event(error: OpenAIError) -> bytes:
    """The last event of a stream that failed after its 200. [DONE] does not follow it."""
    return b"".join((HEAD, error.body(), TAIL))
