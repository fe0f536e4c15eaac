"""The access log: one line for each finished request, on standard output.

All other logs go to standard error, so that each can have a file of its own. Both programs write
the same members, and one request has the same `request_id` in both; docs/operate.md lists them. No
line has a prompt, an output, a key or a path as the client wrote it.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

AccessLogForm = Literal["off", "text", "json"]
"""`text` is one `name=value` after another, `json` one JSON object a line."""

# `end` of a request that succeeded and has no finish reason, as an embedding.
DONE: Final = "done"

_Member = str | float | None
# A value that needs no quotes in a line of text.
_PLAIN: Final = re.compile(r'[^\s"=]+', re.ASCII)


class AccessLog:
    """Writes the lines of one program.

    Args:
        program: "edge" or "inference".
        form: Of the lines.
    """

    def __init__(self, program: str, form: Literal["text", "json"]) -> None:
        self._program = program
        self._is_json = form == "json"

    def write(self, **members: _Member) -> None:
        """Writes a line without members that are None or empty; fractions are rounded to tenths."""
        line: dict[str, _Member] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "program": self._program,
        }
        for name, value in members.items():
            if value is not None and value != "":
                line[name] = round(value, 1) if isinstance(value, float) else value
        text = json.dumps(line) if self._is_json else " ".join(map(_text, line.items()))
        # A reader that has left, or a full disk, must not fail the request.
        with suppress(OSError, ValueError):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def access_log(program: str, form: AccessLogForm) -> AccessLog | None:
    """The access log of a program; None if it is off."""
    return None if form == "off" else AccessLog(program, form)


def _text(member: tuple[str, _Member]) -> str:
    name, value = member
    plain = str(value)
    # ASCII only: standard output may have no other character.
    return f"{name}={plain if _PLAIN.fullmatch(plain) and plain.isascii() else json.dumps(plain)}"
