"""The grammars of running requests: llguidance for JSON and tool calls, xgrammar for the rest.

An engine core of vLLM keeps one backend for all requests. xgrammar ignores many keywords of JSON
Schema; llguidance refuses them, and can be told so before the request runs. Patterns, grammars and
lists of choices stay with xgrammar, and so do tool calls whose arguments are no JSON.

To xgrammar a special token is its name. As such tokens are left out of the text, rules of the text
are compiled for a vocabulary without them: a name in a rule is then written with other tokens.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any, Final

import llguidance
import xgrammar
from vllm.sampling_params import SamplingParams
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend, validate_xgrammar_grammar
from vllm.v1.structured_output.utils import grammar_is_likely_lark

from inference.engines.json_schema.grammars import grammar_of, matcher_of
from inference.engines.structural_tags import HEADS

log = logging.getLogger(__name__)

_ANY_OBJECT: Final = '{"type": "object"}'


class Grammars(XgrammarBackend):  # type: ignore[misc]
    """vLLM's backend with both libraries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tokens: Any = None
        self._for_text = copy.copy(self)
        info = self.compiler.compile_grammar('root ::= "a"').tokenizer_info
        info = _without_special(info, self.tokenizer.all_special_ids)
        self._for_text.compiler = xgrammar.GrammarCompiler(
            info, max_threads=8, cache_limit_bytes=self.compiler.cache_limit_bytes
        )
        if GuidanceBackend.is_tokenizer_supported(self.tokenizer):
            self._tokens = GuidanceBackend._build_ll_tokenizer(self.tokenizer, self.vocab_size)

    def compile_grammar(
        self, request_type: Any, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> Any:
        grammar = self._guided(request_type, grammar_spec) if self._tokens else None
        if grammar is None:
            is_tag = request_type == StructuredOutputOptions.STRUCTURAL_TAG
            compiling = self if is_tag else self._for_text
            return XgrammarBackend.compile_grammar(
                compiling, request_type, grammar_spec, stop_token_ids
            )
        matcher = matcher_of(self._tokens, grammar)
        if matcher.is_error():
            raise ValueError("llguidance cannot compile the grammar")
        return _Grammar(matcher, self._tokens, self.vocab_size)

    def _guided(self, kind: Any, spec: str) -> str | None:
        """llguidance's grammar; None if it is xgrammar's."""
        if kind == StructuredOutputOptions.JSON:
            return grammar_of(spec)
        if kind == StructuredOutputOptions.JSON_OBJECT:
            return grammar_of(_ANY_OBJECT)
        # vLLM's parser for Mistral writes Lark for llguidance, with token names in it.
        theirs = is_mistral_tokenizer(self.tokenizer) and grammar_is_likely_lark(spec)
        if kind == StructuredOutputOptions.GRAMMAR and (spec.startswith(HEADS) or theirs):
            return str(llguidance.grammar_from("grammar", spec))
        return None


def _without_special(info: xgrammar.TokenizerInfo, special: Iterable[int]) -> Any:
    """xgrammar's vocabulary without the texts of special tokens."""
    texts: list[Any] = info.decoded_vocab
    for token in set(special) - set(info.stop_token_ids):
        texts[token] = b""
    return xgrammar.TokenizerInfo(
        texts,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=info.vocab_size,
        stop_token_ids=info.stop_token_ids,
        add_prefix_space=info.add_prefix_space,
    )


class _Grammar(GuidanceGrammar):  # type: ignore[misc]
    printed_error: bool

    def check_error(self) -> None:
        # The library's text holds output, so vLLM must not log it.
        if not self.printed_error and self.ll_matcher.is_error():
            self.printed_error = True
            log.warning("a grammar stopped: %s", self.ll_matcher.stop_reason())


def validate(sampling_params: SamplingParams) -> None:
    """Takes the place of vLLM's check: schemas have been checked when the request was prepared."""
    rule = sampling_params.structured_outputs
    if rule is None or rule.json is not None or rule.json_object:
        return
    if rule.grammar is None or not rule.grammar.startswith(HEADS):
        validate_xgrammar_grammar(sampling_params)
