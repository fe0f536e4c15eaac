"""Patterns and grammars of a text: xgrammar enforces what passes, and the rest is refused."""

from __future__ import annotations

import warnings

import pytest
import xgrammar

from inference.errors import InferenceError
from isthmus.v1.generate_pb2 import Constraint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines.vllm_sampling import pattern_rule, structured_outputs

_BYTES = xgrammar.TokenizerInfo(
    [*(bytes([byte]) for byte in range(256)), b"</s>"], xgrammar.VocabType.RAW, stop_token_ids=[256]
)
_IDEOGRAPHIC_SPACE = "\u3000"


def _allows(constraint: Constraint, text: str) -> bool:
    rule, sent = pattern_rule(constraint), structured_outputs(constraint)
    assert rule is not None
    assert sent is not None
    assert rule.rule in (sent.regex, sent.grammar), "the answer is checked against another rule"
    compiler = xgrammar.GrammarCompiler(_BYTES)
    compiled = {
        "regex": compiler.compile_regex,
        "grammar": compiler.compile_grammar,
        "lark": compiler.compile_lark,
    }[rule.kind](rule.rule)
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text)) and bool(matcher.is_completed())


@pytest.mark.parametrize(
    ("pattern", "allowed", "forbidden"),
    [
        ("a.b", ["a b", "a😀b"], ["a\nb", "a\rb", "a\u2028b"]),
        (r"a\.[.]", ["a.."], ["a.b", "ab."]),
        (r"\S+", ["ab", "é"], [_IDEOGRAPHIC_SPACE, "a b", "a\ufeff"]),
        (r"[\S,]", ["a", ","], [_IDEOGRAPHIC_SPACE, " "]),
        (r"[^\s]", ["a"], [_IDEOGRAPHIC_SPACE, "\xa0"]),
        (r"[^\S\n]", [" ", _IDEOGRAPHIC_SPACE], ["\n", "a"]),
        (r"[\s\S]", ["\n", "a", "\0", "😀"], ["", "ab"]),
        (r"^ab$|^c$", ["ab", "c"], ["abc", "a"]),
        (r"^(a|b)\$[$^]$", ["a$^", "b$$"], ["a", "a$"]),
        (r"\w\d\/\-\x41\u0042", ["a1/-AB"], ["é1/-AB", "a1/-ab"]),
    ],
)
def test_pattern_means_what_it_means_in_ecmascript(
    pattern: str, allowed: list[str], forbidden: list[str]
) -> None:
    constraint = Constraint(regex=pattern)
    assert [text for text in (*allowed, *forbidden) if _allows(constraint, text)] == allowed


@pytest.mark.parametrize(
    ("grammar", "allowed", "forbidden"),
    [
        ('root ::= "(=" [(=] # (=', ["(=("], ["("]),
        ('root ::= "Regex(" "a"', ["Regex(a"], ["a"]),
        ('start: /a.b/s "%json" // %json', ["a\nb%json"], ["ab"]),
        (r"start: /\S\/[^\s]/", ["a/b"], [f"{_IDEOGRAPHIC_SPACE}/b", f"a/{_IDEOGRAPHIC_SPACE}"]),
        ('start: max_tokens\nmax_tokens: "a"', ["a"], ["aa"]),
    ],
)
def test_what_a_grammar_may_hold_is_enforced(
    grammar: str, allowed: list[str], forbidden: list[str]
) -> None:
    constraint = Constraint(grammar=grammar)
    assert [text for text in (*allowed, *forbidden) if _allows(constraint, text)] == allowed


@pytest.mark.parametrize(
    "constraint",
    [
        *(
            Constraint(regex=pattern)
            for pattern in ("a^b", "a$b", "a(^b|c)", "(a$)b", "$+a", r"\Aa", r"a\Z", r"[\p{L}]")
        ),
        *(
            Constraint(grammar=grammar)
            for grammar in (
                'root ::= "a" (="b")',
                'root ::= x [a-c]\nx ::= "a" ( = "b")',
                'root ::= Regex("a^b")',
                "start: /a^b/",
                'start: "a" /^b/',
                r"start: /[\p{L}]/",
                'start: %json {"type": "integer", "not": {"const": 1}}',
                'start: "\\"" %json {}',
                'start: word\nword[max_tokens=1]: "a"+',
            )
        ),
    ],
    ids=str,
)
def test_what_xgrammar_would_not_enforce_is_refused(constraint: Constraint) -> None:
    with pytest.raises(InferenceError) as refusal:
        pattern_rule(constraint)
    assert refusal.value.reason == "invalid_value"
    assert refusal.value.param == f"structured_outputs.{constraint.WhichOneof('rule')}"
