r"""Patterns and grammars of a text in the dialect of xgrammar, which makes their grammar.

xgrammar has no error for some of what it does not know: it ignores an anchor in the middle and
what a grammar looks ahead for, takes an escape such as `\A` for the letter, and enforces a few
keywords of a schema in a grammar. So these are refused. It also means more than ECMA-262 by `.`
and `\S`, which are spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from inference.engines.json_schema.patterns import PatternError

_SPACE: Final = r"\t-\r \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF"
_OTHERS: Final = (
    r"\u0000-\u0008\u000E-\u001F\u0021-\u009F\u00A1-\u167F\u1681-\u1FFF\u200B-\u2027"
    r"\u202A-\u202E\u2030-\u205E\u2060-\u2FFF\u3001-\uFEFE\uFF00-\U0010FFFF"
)
_SETS: Final = {"s": _SPACE, "S": _OTHERS}
_NO_LINE_END: Final = r"[^\n\r\u2028\u2029]"
# Escapes of letters that mean the same in both.
_KNOWN: Final = frozenset("dDwWtnrfvxu")
_PIECE: Final = re.compile(r"\\(?P<escape>.)|.", re.DOTALL)

_QUOTED: Final = r'"(?:\\.|[^"\\])*"'
_CLASS: Final = r"\[(?:\\.|[^\]\\])*\]"
# Strings, comments, patterns, and what is refused.
_LARK: Final = re.compile(
    rf"{_QUOTED}|//[^\n]*|/(?P<pattern>(?:\\.|{_CLASS}|[^/\\\n])+)/"
    r"|(?P<refused>%json\b|\b(?:max_tokens|temperature)\s*=)"
)
# Strings, classes, comments, and what is refused.
_EBNF: Final = re.compile(rf"{_QUOTED}|{_CLASS}|#[^\n]*|(?P<refused>\(\s*=|\bRegex\s*\()")


def text_pattern(pattern: str) -> str:
    """The pattern of a whole text; raises PatternError for what xgrammar would not enforce.

    Anchors may only stand where they change nothing: at the beginning and the end of its branches.
    """
    return "".join(_pieces(pattern, whole=True))


def text_grammar(grammar: str, *, lark: bool) -> str:
    """A grammar in EBNF or Lark; raises PatternError."""

    def replaced(found: re.Match[str]) -> str:
        if found["refused"]:
            raise PatternError
        pattern = found["pattern"] if lark else None
        return found[0] if pattern is None else f"/{''.join(_pieces(pattern, whole=False))}/"

    return (_LARK if lark else _EBNF).sub(replaced, grammar)


def _pieces(pattern: str, *, whole: bool) -> Iterator[str]:
    """The pieces of a pattern; one that is a part of a grammar has no anchors and keeps its `.`."""
    depth, in_class, before = 0, False, "|"
    for found in _PIECE.finditer(pattern):
        text, escape = found[0], found["escape"]
        after = pattern[found.end() : found.end() + 1]
        if escape in _SETS:
            yield _SETS[escape] if in_class else f"[{_SETS[escape]}]"
        elif escape is not None:
            if escape.isalnum() and escape not in _KNOWN:
                raise PatternError
            yield text
        elif in_class:
            in_class = text != "]"
            yield text
        else:
            in_class = text == "["
            depth += (text == "(") - (text == ")")
            redundant = whole and not depth
            if text == "^" and not (redundant and before == "|"):
                raise PatternError
            if text == "$" and not (redundant and after in ("", "|")):
                raise PatternError
            yield _NO_LINE_END if text == "." and whole else text
        before = text
