"""Regular expressions of JSON Schemas in the dialect of llguidance, which is Rust's.

JSON Schema means ECMA-262. The dialects differ without an error in what `.`, `\\s` and an
unescaped bracket in a class mean, so these are spelled out. Escapes that either dialect lacks, and
groups with flags, are refused; llguidance itself refuses look-around and back references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# ECMA-262's white space and line ends.
_SPACE: Final = (
    r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}"
    r"\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
)
_ESCAPES: Final = {
    "s": f"[{_SPACE}]",
    "S": f"[^{_SPACE}]",
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[A-Za-z0-9_]",
    "W": "[^A-Za-z0-9_]",
    "v": r"\x0B",
    "/": "/",
}
# One escape, class bracket, dot, group or any other character.
_PIECE: Final = re.compile(
    r"\\(?P<escape>u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[pP]\{\w+(?:=\w+)?\}|.)"
    r"|(?P<group>\(\?(?::|<(?=[A-Za-z_]))?)|(?P<other>.)",
    re.DOTALL,
)
_COPIED_ESCAPES: Final = frozenset("tnrf^$\\.*+?()[]{}|-&~#")
# Matches every text.
ANY_TEXT: Final = "(?s)^.*$"


class PatternError(ValueError):
    """The pattern may mean something else in the grammar than in JSON Schema."""


def translated(pattern: str) -> str:
    """The pattern in Rust's dialect; raises PatternError if the meaning may change."""
    pieces: list[str] = []
    in_class = False
    for found in _PIECE.finditer(pattern):
        if (escape := found["escape"]) is not None:
            pieces.append(_escape(escape))
        elif (group := found["group"]) is not None and not in_class:
            if group == "(?":
                raise PatternError
            pieces.append(group)
        elif in_class:
            text = found[0]
            in_class = text != "]"
            # A bracket, and these signs when doubled, are operators in Rust's classes.
            pieces.append("".join(f"\\{c}" if c in "[&~" else c for c in text))
        else:
            text = found["other"]
            in_class = text == "["
            if in_class and re.match(r"\^?\]", pattern[found.end() :]):
                raise PatternError  # an empty class, but not in Rust
            pieces.append(r"[^\n\r\u{2028}\u{2029}]" if text == "." else text)
    return _without_double_dash("".join(pieces))


def _escape(escape: str) -> str:
    if escape in _ESCAPES:
        return _ESCAPES[escape]
    if escape[0] in "ux" and len(escape) > 1:
        code = int(escape.strip("ux{}"), 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise PatternError
        return f"\\u{{{code:X}}}"
    if (escape[0] in "pP" and len(escape) > 1) or escape in _COPIED_ESCAPES:
        return f"\\{escape}"
    raise PatternError


def _without_double_dash(pattern: str) -> str:
    # "--" is the difference of classes in Rust; in ECMA-262 it is a range or nothing useful.
    if re.search(r"\[[^\]]*--", pattern):
        raise PatternError
    return pattern


def any_of(texts: Iterable[str]) -> str:
    """A pattern of exactly these texts."""
    return f"^(?:{'|'.join(_literal(text) for text in texts)})$"


def none_of(texts: Iterable[str]) -> str:
    """A pattern of every text except these: Rust's dialect has no negation."""
    root: dict[str, object] = {}
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})  # type: ignore[assignment]
        node[""] = {}
    return f"(?s)^{_except(root)}$"


def _except(node: dict[str, object]) -> str:
    """A pattern of every rest of a text that is not in the tree `node`."""
    branches = {character: rest for character, rest in node.items() if character}
    options = [] if "" in node else [""]
    if branches:
        others = "".join(_literal(character) for character in branches)
        options.append(f"[^{others}].*")
        options += [
            f"{_literal(c)}{_except(rest)}"  # type: ignore[arg-type]
            for c, rest in branches.items()
        ]
    else:
        options.append(".+")
    return f"(?:{'|'.join(options)})"


def _literal(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\u{{{ord(c):X}}}" for c in text)
