"""Every limit that protects an engine, checked before the engine gets a request.

Both RPC services use these checks. The edge may refuse a request earlier with the same text, but
no limit is checked only there. The engine checks vocabulary, template and parsers of its model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import Message

from contract import refusals
from contract.limits import (
    MAX_BEST_OF,
    MAX_ENTRIES,
    MAX_INPUT_TOKENS,
    MAX_INPUTS,
    MAX_LISTED_CHARACTERS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_SCHEMA_BYTES,
)
from contract.parameters import PARAMETERS, Parameter
from inference.config import ModelConfig
from inference.conversation import check_chat, mentions_json, read_object
from inference.engines.base import Engine
from inference.errors import (
    InferenceError,
    above,
    below,
    check_length,
    check_properties,
    check_string,
    check_vocabulary,
    context_error,
    invalid_value,
)
from inference.prompts import check_text_length
from inference.truncation import check_truncation, cut, kept_tokens
from isthmus.v1.chat_pb2 import ToolChoice
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, Sampling
from isthmus.v1.models_pb2 import Model, TextCapabilities

# Stop strings of a gRPC request, and characters of each; REST allows as many as OpenAI.
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
# Bytes of all vectors of one response, below the limit of 64 MiB for a message.
MAX_MATRIX_BYTES: Final = 48 * 1024 * 1024


def check_generate(
    request: GenerateRequest, config: ModelConfig, engine: Engine, context_length: int
) -> None:
    """Refuses requests beyond the limits of the service or the model's capabilities.

    Args:
        request: From any caller.
        config: The model's configuration.
        engine: The engine that will run it.
        context_length: Tokens of the context under the requested name.

    Raises:
        InferenceError: With OpenAI's code and the name of the parameter.
    """
    capabilities = engine.model.text
    _check_input(request, capabilities, context_length)
    if engine.characters_a_token is not None and not request.HasField("truncate_prompt_tokens"):
        check_text_length(request, context_length, engine.characters_a_token)
    # Absent messages need no check.
    if request.HasField("sampling"):
        _check_sampling(request.sampling, capabilities)
    if request.HasField("stopping"):
        _check_stopping(request, capabilities)
    if request.HasField("output"):
        _check_output(request, config)
    if request.HasField("constraint"):
        _check_constraint(request, config)
    _check_parameters(request, capabilities)


def requested_choices(request: GenerateRequest) -> int:
    """Number of continuations that the engine generates: best_of if set, else n."""
    output = request.output
    return max(output.n if output.HasField("n") else 1, output.best_of)


def vector_bytes(request: EmbedRequest, model: Model) -> int:
    """Size of the model's full vectors for all inputs."""
    return 4 * len(request.inputs) * model.embedding.dimensions


def answer_budget(request: GenerateRequest, prompt_tokens: int, context_length: int) -> int:
    """The maximum tokens of a choice within the context.

    Raises:
        InferenceError: The prompt, or prompt and max_tokens together, exceed the context.
    """
    stopping = request.stopping
    asked = stopping.max_tokens if stopping.HasField("max_tokens") else None
    wanted = None if stopping.cut_to_context else asked
    scores_prompt = wanted == 0 and request.output.echo
    # Without max_tokens the output needs one token.
    answer = wanted or (0 if scores_prompt else 1)
    if (room := context_length - prompt_tokens) >= answer:
        return room if asked is None else min(asked, room)
    raise context_error(request.HasField("chat"), context_length, prompt_tokens, answer)


def check_embed(request: EmbedRequest, dimensions: int) -> None:
    """Refuses empty and over-long lists, empty inputs, and more vectors than one message holds.

    Args:
        request: From any caller.
        dimensions: Length of the model's full vectors.

    Raises:
        InferenceError: With OpenAI's code and the param "input" or "dimensions".
    """
    if request.HasField("truncate_prompt_tokens"):
        check_truncation(request)
    if not request.inputs:
        raise InferenceError.of(refusals.empty_array("input"))
    check_length(len(request.inputs), MAX_INPUTS, "input")
    tokens = 0
    for index, item in enumerate(request.inputs):
        if item.text:
            continue
        param = refusals.input_path(index, len(request.inputs))
        if not item.HasField("token_ids"):
            raise InferenceError.of(refusals.invalid_input(param))
        if not (count := len(item.token_ids.ids)):
            raise InferenceError.of(refusals.empty_array(param))
        tokens += count
    if tokens > MAX_INPUT_TOKENS:
        raise InferenceError.of(refusals.too_many_input_tokens())
    if request.HasField("dimensions") and request.dimensions < 1:
        raise below("dimensions", 1, request.dimensions)
    columns = min(request.dimensions or dimensions, dimensions)
    if len(request.inputs) * columns * 4 > MAX_MATRIX_BYTES:
        raise InferenceError(
            "array_above_max_length",
            "Invalid 'input': the vectors would exceed what one answer may hold.",
            param="input",
        )


def _check_input(
    request: GenerateRequest, capabilities: TextCapabilities, context_length: int
) -> None:
    kind = request.WhichOneof("input")
    if kind is None:
        raise InferenceError.of(refusals.missing_parameter("messages"))
    if kind == "chat":
        check_chat(request.chat)
    if request.HasField("truncate_prompt_tokens"):
        check_truncation(request)
    if kind == "token_ids":
        if not request.token_ids.ids:
            raise InferenceError.of(refusals.empty_array("prompt"))
        ids: Sequence[int] = request.token_ids.ids
        if (kept := kept_tokens(request, context_length)) is not None:
            ids = cut(ids, kept, request.truncation_side)
        # First, because finding the largest of millions of ids takes a second.
        answer_budget(request, len(ids), context_length)
        _check_vocabulary(ids, capabilities, "prompt")
    if request.HasField("suffix") and (kind == "chat" or not capabilities.suffix):
        refuse = refusals.unsupported_parameter if kind == "chat" else refusals.unsupported_by_model
        raise InferenceError.of(refuse("suffix"))
    if request.HasField("suffix") and request.HasField("truncate_prompt_tokens"):
        # A prompt with a suffix is built with marker tokens, which truncation could cut off.
        raise InferenceError.of(refusals.unsupported_parameter("truncate_prompt_tokens"))


def _check_vocabulary(ids: Sequence[int], capabilities: TextCapabilities, param: str) -> None:
    # Engines that do not say the size check the ids themselves.
    if capabilities.vocabulary_size:
        check_vocabulary(ids, capabilities.vocabulary_size, param)


def _check_sampling(sampling: Sampling, capabilities: TextCapabilities) -> None:
    _check_parameters(sampling, capabilities)
    biases = sampling.logit_bias
    check_properties(len(biases), MAX_ENTRIES, "logit_bias")
    for bias in biases.values():
        check_number("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    highest_id = capabilities.vocabulary_size - 1
    if highest_id > 0 and (token := max(biases, default=0)) > highest_id:
        raise InferenceError.of(refusals.biased_token_too_large(str(token), highest_id))


def _check_stopping(request: GenerateRequest, capabilities: TextCapabilities) -> None:
    stopping = request.stopping
    if stopping.HasField("max_tokens"):
        wanted = stopping.max_tokens
        if wanted < 1 and (not request.output.echo or request.HasField("chat")):
            raise below("max_tokens", 1, wanted)
        if stopping.min_tokens > wanted:
            raise above("min_tokens", wanted, stopping.min_tokens)
    _check_parameters(stopping, capabilities)
    if strings := stopping.strings:
        check_length(len(strings), MAX_STOP_STRINGS, "stop")
        for text in strings:
            if not text:
                raise InferenceError.of(refusals.empty_string("stop"))
            check_string(len(text), MAX_STOP_CHARACTERS, "stop")


def _check_output(request: GenerateRequest, config: ModelConfig) -> None:
    output = request.output
    n, best_of = output.n, output.best_of
    if n < 1 and output.HasField("n"):
        raise below("n", 1, n)
    if n > config.max_choices:
        raise above("n", config.max_choices, n)
    if best_of > min(MAX_BEST_OF, config.max_choices):
        raise above("best_of", min(MAX_BEST_OF, config.max_choices), best_of)
    if best_of < max(n, 1) and output.HasField("best_of"):
        raise InferenceError.of(refusals.best_of_below_n())
    if output.logprobs > MAX_LOGPROBS:
        name = "top_logprobs" if request.HasField("chat") else "logprobs"
        raise above(name, MAX_LOGPROBS, output.logprobs)
    if output.prompt_logprobs > MAX_LOGPROBS:
        raise above("prompt_logprobs", MAX_LOGPROBS, output.prompt_logprobs)


_FORCED: Final = (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_FUNCTION)
# The edge sends no `response_format` beside a forced call, so what the names say is what was sent.
_CONSTRAINT_PARAMS: Final = {
    "json_schema": "response_format",
    "json_object": "structured_outputs",
    "choices": "structured_outputs.choice",
    "regex": "structured_outputs.regex",
    "grammar": "structured_outputs.grammar",
}


def _check_constraint(request: GenerateRequest, config: ModelConfig) -> None:
    constraint = request.constraint
    rule = constraint.WhichOneof("rule")
    if rule and request.chat.tool_choice.mode in _FORCED:
        raise InferenceError.of(refusals.constraint_of_forced_call(_CONSTRAINT_PARAMS[rule]))
    if rule == "json_schema":
        read_object(constraint.json_schema, "response_format.json_schema.schema")
    elif rule == "json_object":
        # Without an instruction to write JSON, a model emits white space up to its token limit.
        told = not request.HasField("chat") or mentions_json(request.chat)
        if constraint.json_object and not told:
            raise InferenceError.of(refusals.json_not_mentioned())
    elif rule == "choices":
        param = "structured_outputs.choice"
        if not constraint.choices.values:
            raise InferenceError.of(refusals.empty_array(param))
        check_length(len(constraint.choices.values), MAX_ENTRIES, param)
        check_string(sum(map(len, constraint.choices.values)), MAX_SCHEMA_BYTES, param)
    elif rule in ("regex", "grammar"):
        param = f"structured_outputs.{rule}"
        if not config.allow_patterns:
            raise InferenceError.of(refusals.unsupported_by_model(param))
        check_string(len(getattr(constraint, rule)), MAX_SCHEMA_BYTES, param)


_PARAMETERS: Final = {parameter.descriptor: parameter for parameter in PARAMETERS}


def _check_parameters(message: Message, capabilities: TextCapabilities) -> None:
    """Checks the ranges of contract/parameters.py."""
    for field, value in message.ListFields():
        if (parameter := _PARAMETERS.get(field)) is not None:
            _check_parameter(parameter, value, capabilities)


def _check_parameter(parameter: Parameter, value: Any, capabilities: TextCapabilities) -> None:
    name = parameter.name
    if parameter.repeated or parameter.kind is str:
        if parameter.not_empty and not value:
            raise InferenceError.of(refusals.empty_string(name))
        if parameter.max_length is not None:
            check = check_length if parameter.repeated else check_string
            check(len(value), parameter.max_length, name)
        if parameter.repeated and parameter.kind is str:
            for text in value:
                if not text.strip():
                    raise InferenceError.of(refusals.empty_string(name))
                check_string(len(text), MAX_LISTED_CHARACTERS, name)
        if parameter.token_ids:
            _check_vocabulary(value, capabilities, name)
    elif parameter.kind is not bool:
        minimum, maximum = parameter.minimum, parameter.maximum
        check_number(name, value, minimum, maximum, above_minimum=parameter.above_minimum)


def check_number(
    name: str,
    value: float,
    minimum: float | None,
    maximum: float | None,
    *,
    above_minimum: bool = False,
) -> None:
    if not math.isfinite(value):
        raise invalid_value(f"Invalid '{name}': expected a finite number.", name)
    if minimum is not None and (value < minimum or (above_minimum and value == minimum)):
        raise below(name, minimum, value, allowed=not above_minimum)
    if maximum is not None and value > maximum:
        raise above(name, maximum, value)
