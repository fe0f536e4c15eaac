"""Whether a text obeys a pattern or a grammar, as xgrammar reads them."""

from __future__ import annotations

import functools
from typing import Any, Final

import xgrammar
from vllm.v1.structured_output.utils import grammar_is_likely_lark

from isthmus.v1.generate_pb2 import Constraint

_END: Final = 256


class TextRule:
    """A pattern or grammar that has been checked; `kind` is "regex", "grammar" or "lark"."""

    def __init__(self, kind: str, text: str) -> None:
        self._kind = kind
        self._text = text

    def is_valid(self, text: str) -> bool:
        """Whether the rule describes the whole text."""
        compiled = getattr(_compiler(), f"compile_{self._kind}")(self._text)
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text)) and bool(matcher.is_completed())


def text_rule(constraint: Constraint) -> TextRule | None:
    """The pattern or grammar of a constraint; None if it has none."""
    if constraint.HasField("regex"):
        return TextRule("regex", constraint.regex)
    if not constraint.HasField("grammar"):
        return None
    is_lark = grammar_is_likely_lark(constraint.grammar)
    return TextRule("lark" if is_lark else "grammar", constraint.grammar)


@functools.cache
def _compiler() -> Any:
    """A compiler for a vocabulary of the 256 bytes: no vocabulary changes what a rule means."""
    vocabulary: list[Any] = [bytes([byte]) for byte in range(_END)]
    info = xgrammar.TokenizerInfo(
        [*vocabulary, b"</s>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[_END]
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=16 * 1024**2)
