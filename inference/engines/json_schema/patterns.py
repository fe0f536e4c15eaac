"""Regular expressions of JSON Schemas in the dialect of llguidance, which is Rust's.

JSON Schema means ECMA-262. The dialects differ without an error in what `.`, `\\s` and an
unescaped bracket in a class mean, so these are spelled out. Escapes that either dialect lacks, and
groups with flags, are refused; llguidance itself refuses look-around and back references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from inference.engines.json_schema.boundaries import without_boundaries

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
    r"|(?P<group>\(\?(?::|P?<(?=[A-Za-z_]))?)|(?P<other>.)",
    re.DOTALL,
)
_COPIED_ESCAPES: Final = frozenset("tnrf^$\\.*+?()[]{}|-&~#")
# A class that has all control characters, and lacks the quote or the backslash, would let the
# grammar write these two. So no class has U+0000, and no answer to a pattern with a class.
_NUL: Final = r"\u{0}"
# Matches every text.
ANY_TEXT: Final = "(?s)^.*$"


# _KNOWN: zod's patterns with a lookahead, each with an equivalent pattern without one.
_SECONDS: Final = r"\d+(?:[.,]\d+)?S"
_MINUTES: Final = rf"\d+M(?:{_SECONDS})?"
_TIME: Final = rf"T(?:\d+H(?:\d+M)?(?:{_SECONDS})?|{_MINUTES}|{_SECONDS})"
_DAYS: Final = r"(?:\d+Y(?:\d+M)?(?:\d+D)?|\d+M(?:\d+D)?|\d+D)"
_KNOWN: Final = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+"
    r"[A-Za-z]{2,}$": r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]@"
    r"(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
    r"(?!\s*$).+": r"\S",
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?"
    r"(\d+([.,]\d+)?S)?)?)$": rf"^P(?:\d+W|{_DAYS}(?:{_TIME})?|{_TIME})$",
}
LOOKAHEAD: Final = "(?="
_SIGNS_OF_WORDS: Final = (r"\<", r"\>")
# Texts that are not blank, and those that do not begin with a space.
_BEGINNINGS: Final = {
    r"^(?!\s*$)": r"^(?=[\s\S]*\S)",
    r"^(?!\s+$)": r"^(?=$|[\s\S]*\S)",
    r"^(?!\s)": r"^(?=$|\S)",
    "^(?! )": "^(?=$|[^ ])",
}
# The beginning of pydantic's patterns of decimal numbers, which demands a digit; and what looks
# ahead behind it.
_DECIMAL: Final = "^(?!^[-+.]*$)"
_DIGIT: Final = r"^(?=.*\d)"
_DIGITS: Final = re.compile(
    r"\(\?=\[\\d\.\]\{1,(\d+)\}0\*\$\)(\\d\{0,(\d+)\}\\\.\\d\{0,(\d+)\}0\*\$\))"
)


class PatternError(ValueError):
    """The pattern may mean something else in the grammar than in JSON Schema."""


def translated(pattern: str) -> str:
    """The pattern in Rust's dialect; raises PatternError if the meaning may change."""
    pieces: list[str] = []
    # Where the current class begins, and whether it is negated.
    begin, negated = -1, False
    for found in _PIECE.finditer(pattern):
        after = pattern[found.end() :]
        in_class = begin >= 0
        if (escape := found["escape"]) is not None:
            pieces.append(_escape(escape, after, in_class=in_class, negated=negated))
        elif (group := found["group"]) is not None and not in_class:
            if group == "(?":
                raise PatternError
            pieces.append(group)
        elif found[0] == "\0":
            pieces.append(_character(0, after, in_class=in_class, negated=negated))
        elif in_class:
            text = found[0]
            if text == "-" and after.startswith("-"):
                raise PatternError  # The difference of classes in Rust; here a range, or nothing.
            if text == "^" and found.start() == begin:
                negated = True
                pieces.append(rf"^{_NUL}")
                continue
            if text == "]":
                begin, negated = -1, False
            # A bracket, and these signs when doubled, are operators in Rust's classes.
            signs = "[&~-" if negated and found.start() == begin + 1 else "[&~"
            pieces.append("".join(f"\\{c}" if c in signs else c for c in text))
        else:
            pieces.append(_outside(found["other"], pattern[found.start() :]))
            if found["other"] == "[":
                begin = found.end()
    return "".join(pieces)


def respelled_pattern(pattern: str) -> str:
    """The pattern with equals for `\\b` and `(?!`, and escapes for hyphens such as of `[\\w-.]`.

    Rust's dialect has no such hyphen. In ECMA-262 it is itself, without the flag for Unicode. And
    `\\<`, there the sign itself, is the beginning of a word to Rust.
    """
    if pattern in _KNOWN:
        return _KNOWN[pattern]
    pattern = without_boundaries(pattern)
    for beginning, equal in _BEGINNINGS.items():
        if pattern.startswith(beginning):
            pattern = equal + pattern[len(beginning) :]
    if pattern.startswith(_DECIMAL):
        pattern = _DIGIT + _DIGITS.sub(_without_sum, pattern[len(_DECIMAL) :])
    pieces: list[str] = []
    in_class = False
    for found in _PIECE.finditer(pattern):
        text = found[0]
        if in_class and text == "-" and found.end() < len(pattern):
            beside_set = _is_set(pieces[-1]) or _is_set(pattern[found.end() :])
            if beside_set and pattern[found.end()] != "]" and pieces[-1] not in ("[", "^"):
                text = r"\-"
        if found["escape"] is None:
            in_class = text != "]" if in_class else text == "["
        pieces.append(text[1:] if text in _SIGNS_OF_WORDS else text)
    return "".join(pieces)


def _without_sum(found: re.Match[str]) -> str:
    """Leaves out a limit of all characters that those of the parts imply."""
    limit, before, behind = (int(found[group]) for group in (1, 3, 4))
    return found[2] if limit > before + behind else found[0]


def _is_set(text: str) -> bool:
    return re.match(r"\\[dDsSwWpP]", text) is not None


def conditions(pattern: str) -> list[str]:
    """Patterns that a text matches all if it matches this one: `^(?=a)b` is `^(?:a)` and `^b`."""
    found = []
    while pattern.startswith(f"^{LOOKAHEAD}") and (end := _closing(pattern)):
        found.append(f"^(?:{pattern[1 + len(LOOKAHEAD) : end]})")
        pattern = f"^{pattern[end + 1 :]}"
    return [*found, pattern]


def _closing(pattern: str) -> int:
    """Where the first group ends; 0 if it stands in one of several branches."""
    depth, end, in_class = 0, 0, False
    for found in _PIECE.finditer(pattern):
        text = found[0]
        if found["escape"] is not None:
            continue
        if in_class or text == "[":
            in_class = text != "]"
        elif text.startswith("("):
            depth += 1
        elif text == ")":
            depth -= 1
            end = end or (0 if depth else found.start())
        elif text == "|" and not depth:
            return 0
    return end


def _outside(text: str, rest: str) -> str:
    """A character outside a class; `rest` of the pattern begins with it."""
    if (text == "[" and re.match(r"\[\^?\]", rest)) or (
        text == "{" and not re.match(r"\{\d+(,\d*)?\}", rest)
    ):
        raise PatternError  # An empty class, or a brace that repeats nothing, but not in Rust.
    return r"[^\n\r\u{2028}\u{2029}]" if text == "." else text


def _escape(escape: str, after: str, *, in_class: bool, negated: bool) -> str:
    if escape in _ESCAPES:
        return _ESCAPES[escape]
    if escape[0] in "ux" and len(escape) > 1:
        code = int(escape.strip("ux{}"), 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise PatternError
        return _character(code, after, in_class=in_class, negated=negated)
    if escape[0] in "pP" and len(escape) > 1:
        return rf"[\{escape}&&[^{_NUL}]]"
    if escape in _COPIED_ESCAPES:
        return f"\\{escape}"
    if not escape.isalnum():
        return _character(ord(escape), after, in_class=in_class, negated=negated)
    raise PatternError


def _character(code: int, after: str, *, in_class: bool, negated: bool) -> str:
    """The character of an escape, with what follows it in the pattern; see _NUL."""
    if code == 0 and not negated:
        if not in_class or not re.match("-[^]]", after):
            raise PatternError
        code = 1
    return f"\\u{{{code:X}}}"


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


def other_texts(texts: Iterable[str]) -> str:
    """A pattern of every text except these, as `none_of`, in the syntax of ECMA-262."""
    rust = none_of(texts).removeprefix("(?s)")
    return rust.replace("].", r"][\s\S]").replace(".+", r"[\s\S]+")


def _except(node: dict[str, object]) -> str:
    """A pattern of every rest of a text that is not in the tree `node`."""
    branches = {character: rest for character, rest in node.items() if character}
    options = [] if "" in node else [""]
    if branches:
        others = "".join(_literal(character) for character in branches)
        options.append(f"[^{_NUL}{others}].*")
        options += [
            f"{_literal(c)}{_except(rest)}"  # type: ignore[arg-type]
            for c, rest in branches.items()
        ]
    else:
        options.append(".+")
    return f"(?:{'|'.join(options)})"


def _literal(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\u{{{ord(c):X}}}" for c in text)
