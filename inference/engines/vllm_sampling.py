"""GenerateRequest's sampling, stopping and output options as vLLM's SamplingParams.

The service has checked their ranges; vLLM checks them again when the object is constructed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.utils import grammar_is_likely_lark

from contract.parameters import PARAMETERS
from inference.engines.answer_check import SlowRule
from inference.engines.json_schema.patterns import PatternError
from inference.engines.rule_process import RuleProcess
from inference.engines.text_patterns import text_grammar, text_pattern
from inference.engines.vllm_errors import invalid, refused
from inference.limits import requested_choices
from isthmus.v1.generate_pb2 import Constraint, GenerateRequest

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

_OPENAI_DEFAULTS: Final = {"temperature": 1.0, "top_p": 1.0}
# Parameters that vLLM's SamplingParams has under another name than the REST API, or that need
# more than their value. All others are passed on under their REST name.
_BY_HAND: Final = frozenset({"seed", "skip_special_tokens", "cache_salt"})
_PASSED_ON: Final = tuple(p for p in PARAMETERS if p.name not in _BY_HAND)
# Below this vLLM raises the temperature itself, with a line in the log for each request.
_LEAST_TEMPERATURE: Final = 0.01


def structured_outputs(constraint: Constraint) -> StructuredOutputsParams | None:
    """Translates a rule for the output; None where there is none."""
    rule = constraint.WhichOneof("rule")
    if rule == "json_schema":
        return StructuredOutputsParams(json=constraint.json_schema)
    if rule == "json_object":
        return StructuredOutputsParams(json_object=True) if constraint.json_object else None
    if rule == "choices":
        return StructuredOutputsParams(choice=list(constraint.choices.values))
    pattern = pattern_rule(constraint)
    return StructuredOutputsParams(**{rule: pattern.rule}) if rule and pattern else None


async def check_pattern(rules: RuleProcess | None, constraint: Constraint) -> None:
    """Refuses a pattern whose compilation would take too long; vLLM could not interrupt it.

    `rules` is None for a model that takes no patterns.
    """
    if constraint.grammar.lstrip().startswith("%llguidance"):
        raise invalid("structured_outputs.grammar", "it is for another library than xgrammar.")
    pattern = pattern_rule(constraint)
    if rules is None or pattern is None:
        return
    if not await rules.ends(pattern.kind, pattern.rule):
        name = constraint.WhichOneof("rule")
        raise invalid(f"structured_outputs.{name}", "it takes too long to compile.")


def pattern_rule(constraint: Constraint) -> SlowRule | None:
    """The pattern or grammar of a constraint, in one of xgrammar's syntaxes; None without one.

    Raises:
        InferenceError: xgrammar would not enforce all of it.
    """
    rule = constraint.WhichOneof("rule")
    try:
        if rule == "regex":
            return SlowRule("regex", text_pattern(constraint.regex))
        if rule == "grammar":
            lark = grammar_is_likely_lark(constraint.grammar)
            text = text_grammar(constraint.grammar, lark=lark)
            return SlowRule("lark" if lark else "grammar", text)
    except PatternError as error:
        why = "it has an anchor, an escape, or a rule that cannot be enforced."
        raise invalid(f"structured_outputs.{rule}", why) from error
    return None


def constraint_param(constraint: Constraint) -> str:
    """The rule's field in OpenAI's API, or in vLLM's for rules that OpenAI lacks.

    "tools" without a constraint: the rule is then the grammar of tool calls.
    """
    rule = constraint.WhichOneof("rule")
    if rule is None:
        return "tools"
    return "response_format" if rule in ("json_schema", "json_object") else "structured_outputs"


def sampling_params(
    request: GenerateRequest,
    *,
    defaults: Mapping[str, Any],
    rule: StructuredOutputsParams | None,
    skip_special_tokens: bool,
) -> SamplingParams:
    """Translates all except the input and max_tokens; raises InferenceError for a bad value.

    vLLM samples only one continuation (n = 1) if all would be equal. `defaults` are the model's
    own; empty for OpenAI's.
    """
    made = requested_choices(request)
    values = _values(request, defaults)
    # Both mean greedy sampling; vLLM accepts only temperature 0, and only for one choice.
    greedy = values["temperature"] == 0.0 or values["top_p"] == 0.0
    if greedy:
        values["temperature"], values["top_p"] = 0.0, 1.0
    elif values["temperature"] > 0:
        values["temperature"] = max(values["temperature"], _LEAST_TEMPERATURE)
    stopping, output = request.stopping, request.output
    logprobs = output.logprobs if output.HasField("logprobs") else None
    if made > (output.n or 1) and logprobs is None:
        logprobs = 0  # Ranking needs the log probabilities of the sampled tokens.
    try:
        return SamplingParams(
            **values,
            n=1 if greedy else made,
            stop=list(stopping.strings),
            max_tokens=None,
            logprobs=logprobs,
            prompt_logprobs=output.prompt_logprobs if output.HasField("prompt_logprobs") else None,
            skip_special_tokens=skip_special_tokens,
            logit_bias=dict(request.sampling.logit_bias) or None,
            structured_outputs=rule,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
    except VLLMValidationError as error:
        raise refused(error, "sampling") from error


def _values(request: GenerateRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of SamplingParams for the parameters that the request or the model sets."""
    values: dict[str, Any] = dict(_OPENAI_DEFAULTS)
    for parameter in _PASSED_ON:
        holder = parameter.holder(request)
        if parameter.is_set(holder):
            value = getattr(holder, parameter.field)
            values[parameter.name] = list(value) if parameter.repeated else value
        elif parameter.name in defaults:
            values[parameter.name] = defaults[parameter.name]
    sampling = request.sampling
    if sampling.HasField("seed"):
        # vLLM treats -1 as no seed; 2**63 is above all seeds that a caller can set.
        values["seed"] = sampling.seed if sampling.seed != -1 else 2**63
    return values


async def verify(engine: AsyncLLM, request: GenerateRequest, params: SamplingParams) -> None:
    """Lets vLLM check the parameters against the model; a grammar is checked in a thread.

    Raises:
        InferenceError: vLLM refuses them.
    """
    check = functools.partial(
        params.verify,
        engine.model_config,
        engine.vllm_config.speculative_config,
        engine.vllm_config.structured_outputs_config,
        engine.get_tokenizer(),
    )
    try:
        if params.structured_outputs is None:
            check()
        else:
            await asyncio.to_thread(check)
        params.update_from_tokenizer(engine.get_tokenizer())  # Checks bad_words.
    except (VLLMClientError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        log.info("vLLM refused a request: %s", type(error).__name__)
        raise refused(error, constraint_param(request.constraint)) from error
