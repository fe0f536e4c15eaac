"""llguidance's grammars of rewritten schemas."""

from __future__ import annotations

import functools
import json
from typing import Any, Final

import llguidance

_OPTIONS: Final[Any] = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
# llguidance's own limits are so low that a rule for passwords stops in the middle of an answer.
_LIMITS: Final = llguidance.LLParserLimits(
    max_items_in_row=20_000, step_max_items=200_000, step_lexer_fuel=1_000_000
)


def grammar_of(schema: str) -> str:
    """llguidance's grammar of a rewritten schema."""
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS))


def matcher_of(tokens: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """llguidance's matcher of a grammar, with the limits that all grammars here have."""
    return llguidance.LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)


def embedded(schema: str) -> str:
    """A rewritten schema as it stands in a larger grammar."""
    return json.dumps({**json.loads(schema), "x-guidance": _OPTIONS}, ensure_ascii=False)


def compile_error(schema: Any) -> str:
    """What llguidance says about a rewritten schema; empty if it compiles and has a value."""
    # Building the parser finds more than `validate_grammar` does, and its first step still more.
    matcher = matcher_of(_bytes(), grammar_of(json.dumps(schema)))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error())


@functools.cache
def _bytes() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")
