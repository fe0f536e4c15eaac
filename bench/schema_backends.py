"""Measures which JSON Schemas three grammar libraries enforce, and the cost of compiling them.

    python -m bench.schema_backends TOKENIZER_DIRECTORY

The schemas are those of the official test suite and of tests/engines/answer_schemas.py. Times are
CPU time of all threads, so other work on the machine does not count.
"""

from __future__ import annotations

import collections
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import outlines_core
import xgrammar
from transformers import AutoTokenizer

from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from inference.engines.json_schema.grammars import grammar_of
from tests.engines.answer_schemas import ALL
from tests.engines.official_suite import official_cases, official_suite
from tests.engines.schema_texts import spellings

Allows = Callable[[str], bool]


class Backends:
    def __init__(self, directory: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, len(tokenizer))
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
        self._encode = tokenizer.encode
        self._end = tokenizer.eos_token_id
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self.all = {
            "xgrammar": self._xgrammar,
            "llguidance": lambda schema: self._guided(json.dumps(schema)),
            "llguidance, rewritten": lambda schema: self._guided(
                compile_schema.__wrapped__(json.dumps(schema)).grammar_schema
            ),
            "outlines (pattern only)": self._outlines,
        }

    def _xgrammar(self, schema: Any) -> Allows:
        grammar = self._compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":")
        )

        def allows(text: str) -> bool:
            matcher = xgrammar.GrammarMatcher(grammar)
            tokens = [*self._encode(text), self._end]
            return all(map(matcher.accept_token, tokens))

        return allows

    def _guided(self, schema: str) -> Allows:
        matcher = llguidance.LLMatcher(self._tokens, grammar_of(schema), log_level=0)
        if matcher.is_error():
            raise ValueError

        def allows(text: str) -> bool:
            copy = matcher.deep_copy()
            return all(map(copy.consume_token, self._encode(text))) and copy.is_accepting()

        return allows

    def _outlines(self, schema: Any) -> Allows:
        pattern = outlines_core.json_schema.build_regex_from_schema(json.dumps(schema), "")
        compiled = re.compile(pattern)
        return lambda text: compiled.fullmatch(text) is not None


def main() -> None:
    backends = Backends(sys.argv[1])
    suite = official_suite(Path(tempfile.gettempdir()))
    cases = [case for _, case in official_cases(suite) if isinstance(case["schema"], dict)]
    for name, compiled in backends.all.items():
        counts, costs = collections.Counter[str](), []
        for case in [*cases, *({"schema": schema, "tests": []} for schema in ALL.values())]:
            began = time.process_time()
            try:
                allows = compiled(case["schema"])
            except (ValueError, RuntimeError, TypeError, re.error, SchemaError):
                counts["refused"] += 1
                continue
            costs.append(1000 * (time.process_time() - began))
            counts["accepted"] += 1
            for test in case["tests"]:
                passes = any(map(allows, spellings(test["data"])))
                counts[f"{'valid' if test['valid'] else 'invalid'} {passes}"] += 1
        middle, most = statistics.median(costs), max(costs)
        print(f"{name}: {dict(counts)}, {middle:.1f} ms in the middle, at most {most:.0f} ms")


if __name__ == "__main__":
    main()
