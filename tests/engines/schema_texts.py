"""Texts that the grammar of a schema allows, written by chance and without a model."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import llguidance

from inference.engines.answer_check import SlowRule
from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.grammars import grammar_of, matcher_of

# A vocabulary of the 256 bytes, so every text has one split into tokens.
BYTES = llguidance.LLTokenizer("byte")
# Bytes that JSON's structure is made of are tried more often than others.
_LIKELY = frozenset(b'"{}[]:,0123456789-.eEabcnultrfs\\ \n')
_CLOSING = frozenset(b'"}]')


class Grammar:
    """The grammar of a schema; raises SchemaError if the schema is refused."""

    def __init__(self, schema: dict[str, Any]) -> None:
        compiled = compile_schema(json.dumps(schema))
        self.promised = compiled.validator
        is_slow = isinstance(self.promised, SlowRule)
        self.validator = self.promised.validator if is_slow else self.promised
        self._matcher = matcher_of(BYTES, grammar_of(compiled.grammar_schema))
        assert not self._matcher.is_error(), "what was accepted must compile"

    def allows(self, text: str) -> bool:
        matcher = self._matcher.deep_copy()
        return all(map(matcher.consume_token, text.encode())) and matcher.is_accepting()

    def check(self, allowed: Sequence[str], forbidden: Sequence[str]) -> None:
        """Asserts that grammar and validator allow the ones, and the grammar not the others."""
        for text in allowed:
            assert self.allows(text), text
            assert self.validator.is_valid(json.loads(text)), text
        for text in forbidden:
            assert not self.allows(text), text

    def begins(self, text: str) -> bool:
        """Whether an allowed text may begin so."""
        matcher = self._matcher.deep_copy()
        return all(map(matcher.consume_token, text.encode()))

    def write(self, random: random.Random, length: int = 160) -> str | None:
        """A text of about `length` bytes at most; None if it did not come to an end."""
        matcher, written = self._matcher.deep_copy(), bytearray()
        while len(written) < 4 * length:
            late = len(written) > length
            if matcher.is_accepting() and (late or random.random() < 0.15):
                return written.decode()
            mask = matcher.compute_bitmask()
            allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
            if not allowed:
                return written.decode() if matcher.is_accepting() else None
            closing = [byte for byte in allowed if byte in _CLOSING]
            likely = [byte for byte in allowed if byte in _LIKELY]
            if late and closing:
                allowed = closing
            elif likely and random.random() < 0.85:
                allowed = likely
            written.append(random.choice(allowed))
            assert matcher.consume_token(written[-1])
        return None


def spellings(value: Any) -> Iterator[str]:
    """JSON of a value, in several orders of properties and with and without escapes."""
    orders: Iterator[Any] = iter([value])
    if isinstance(value, dict):
        orders = (dict(items) for items in itertools.permutations(value.items()))
    for ordered in itertools.islice(orders, 6):
        for escaped in (True, False):
            yield json.dumps(ordered, ensure_ascii=escaped, separators=(",", ":"))
