"""Finds what makes the text of a body unusable although its JSON is well-formed: bytes that are not
UTF-8, and lone surrogates, which are halves of a character ("\\ud83d" without "\\ude00").
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from contract.refusals import shown
from edge.openai.errors import OpenAIError, invalid_json

# Bytes that are searched, in some tens of milliseconds at most; beyond them no path is given.
_SEARCHED_BYTES: Final = 128 * 1024
_MAX_PATH: Final = 256
# An escaped surrogate, with its other half if that follows. The backslashes before it are pairs.
_SURROGATE: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*+(\\u[dD](?:[89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?+"
    rb"|[c-fC-F][0-9a-fA-F]{2}))"
)
# The last string may be incomplete: the document is searched up to the fault.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?|[\[\]{},:]', re.DOTALL)


def unusable_text(document: bytes, fault: Exception) -> OpenAIError:
    """The 400 for a document that could not be decoded, with the place of an unusable text.

    Args:
        document: The body.
        fault: What the decoder raised.
    """
    if isinstance(fault, UnicodeDecodeError):
        return _at(document, fault.start, "is not UTF-8")
    for match in _SURROGATE.finditer(document, 0, _SEARCHED_BYTES):
        if match[2] is None:
            return _at(document, match.start(1), "is a lone surrogate, half of a character")
    return invalid_json()


def _at(document: bytes, position: int, explanation: str) -> OpenAIError:
    error = invalid_json()
    path = shown(_path(document, position), _MAX_PATH) if position < _SEARCHED_BYTES else ""
    member = f" in '{path}'" if path else ""
    error.message += f" What is at byte {position}{member} {explanation}."
    error.param = path or None
    return error


def _path(document: bytes, position: int) -> str:
    """The path of the value at a position; of the object if the position is in a name."""
    steps: list[str | int] = []
    text = b""
    for match in _TOKEN.finditer(document, 0, position):
        token = match[0]
        if token in b"{[":
            steps.append(0 if token == b"[" else "")
        elif token in b"}]":
            if steps:
                steps.pop()
        elif token == b"," and steps:
            last = steps[-1]
            steps[-1] = last + 1 if isinstance(last, int) else ""
        elif token == b":" and steps:
            steps[-1] = _name(text)
        text = token
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps if step != ""
    ).removeprefix(".")


def _name(text: bytes) -> str:
    try:
        return shown(msgspec.json.decode(text, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
