"""Every limit that protects an engine, checked before it sees a request.

Both faces meet here: the edge may refuse sooner, with the same words, but nothing is checked
only there. What depends on the model itself (vocabulary, template, parsers) the engine checks.
"""

from __future__ import annotations

import math
from typing import Final

from inference.config import ModelConfig
from inference.errors import InferenceError
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest

MAX_MESSAGES: Final = 2048
MAX_TOOLS: Final = 128
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
MAX_LOGIT_BIAS: Final = 1024
MAX_LOGPROBS: Final = 20
MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_INPUTS: Final = 2048
# Below the 64 MiB that a message may have.
MAX_MATRIX_BYTES: Final = 48 * 1024 * 1024

# field of Sampling -> lowest, highest (None: unbounded); bounds are inclusive.
_DECIMALS: Final[dict[str, tuple[float, float | None]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, None),
}


def check_generate(request: GenerateRequest, config: ModelConfig) -> None:
    """Refuses what no engine should be asked.

    Raises:
        InferenceError: With OpenAI's code and the name of the member.
    """
    _check_input(request)
    _check_sampling(request)
    _check_stopping(request)
    _check_output(request, config)
    _check_constraint(request, config)


def requested_choices(request: GenerateRequest) -> int:
    """The continuations that the engine will make: best_of where given, else n."""
    output = request.output
    return max(output.n if output.HasField("n") else 1, output.best_of)


def answer_budget(request: GenerateRequest, prompt_tokens: int, context_length: int) -> int:
    """The most tokens that a choice may have within the caller's context.

    Raises:
        InferenceError: The prompt, or prompt and max_tokens together, exceed the context.
    """
    room = context_length - prompt_tokens
    stopping = request.stopping
    wanted = stopping.max_tokens if stopping.HasField("max_tokens") else None
    scores_prompt = wanted == 0 and request.output.echo
    if room >= (wanted or (0 if scores_prompt else 1)):
        return room if wanted is None else wanted
    raise context_error(request.HasField("chat"), context_length, prompt_tokens, wanted or 0)


def context_error(
    chat: bool, context_length: int, prompt_tokens: int, answer_tokens: int
) -> InferenceError:
    """OpenAI's two wordings: chats carry a code and a param, texts and embeddings neither."""
    if not chat:
        return InferenceError(
            "invalid_request_error",
            f"This model's maximum context length is {context_length} tokens, however you "
            f"requested {prompt_tokens + answer_tokens} tokens ({prompt_tokens} in your prompt; "
            f"{answer_tokens} for the completion). Please reduce your prompt; or completion "
            "length.",
        )
    if prompt_tokens >= context_length or not answer_tokens:
        detail = (
            f"your messages resulted in {prompt_tokens} tokens. "
            "Please reduce the length of the messages."
        )
    else:
        detail = (
            f"you requested {prompt_tokens + answer_tokens} tokens ({prompt_tokens} in the "
            f"messages, {answer_tokens} in the completion). "
            "Please reduce the length of the messages or completion."
        )
    return InferenceError(
        "context_length_exceeded",
        f"This model's maximum context length is {context_length} tokens. However, {detail}",
        param="messages",
    )


def check_embed(request: EmbedRequest) -> None:
    """Refuses empty and over-long lists, and empty inputs.

    Raises:
        InferenceError: With OpenAI's code and the param "input" or "dimensions".
    """
    if not request.inputs:
        raise _missing("input")
    _check_length(len(request.inputs), MAX_INPUTS, "input")
    for item in request.inputs:
        if not (item.text if item.WhichOneof("input") == "text" else item.token_ids.ids):
            raise InferenceError(
                "invalid_request_error",
                "'$.input' is invalid: it must not be empty or hold empty items.",
                param="input",
            )
    if request.HasField("dimensions") and request.dimensions < 1:
        raise _below("dimensions", 1, request.dimensions)


def _check_input(request: GenerateRequest) -> None:
    kind = request.WhichOneof("input")
    if kind is None:
        raise _missing("messages")
    if kind == "token_ids" and not request.token_ids.ids:
        raise _empty("prompt")
    if kind == "chat":
        chat = request.chat
        if not chat.messages:
            raise _empty("messages")
        _check_length(len(chat.messages), MAX_MESSAGES, "messages")
        _check_length(len(chat.tools), MAX_TOOLS, "tools")
        for index, tool in enumerate(chat.tools):
            _check_schema(tool.parameters_json, f"tools[{index}].function.parameters")
        if request.HasField("suffix"):
            raise InferenceError(
                "unsupported_parameter", "A chat takes no 'suffix'.", param="suffix"
            )


def _check_sampling(request: GenerateRequest) -> None:
    sampling = request.sampling
    for name, (lowest, highest) in _DECIMALS.items():
        if sampling.HasField(name):
            _check_decimal(name, getattr(sampling, name), lowest, highest)
    if sampling.top_k < -1:
        raise _below("top_k", -1, sampling.top_k)
    if sampling.HasField("repetition_penalty") and sampling.repetition_penalty == 0:
        raise InferenceError(
            "invalid_value",
            "Invalid 'repetition_penalty': expected a value > 0.",
            param="repetition_penalty",
        )
    _check_length(len(sampling.logit_bias), MAX_LOGIT_BIAS, "logit_bias")
    for bias in sampling.logit_bias.values():
        _check_decimal("logit_bias", bias, -100, 100)


def _check_stopping(request: GenerateRequest) -> None:
    stopping = request.stopping
    scores_prompt = request.output.echo and not request.HasField("chat")
    if stopping.HasField("max_tokens") and stopping.max_tokens < 1 and not scores_prompt:
        raise _below("max_tokens", 1, stopping.max_tokens)
    if stopping.HasField("max_tokens") and stopping.min_tokens > stopping.max_tokens:
        raise _above("min_tokens", stopping.max_tokens, stopping.min_tokens)
    _check_length(len(stopping.strings), MAX_STOP_STRINGS, "stop")
    _check_length(len(stopping.token_ids), MAX_LOGIT_BIAS, "stop_token_ids")
    for text in stopping.strings:
        if not text:
            raise InferenceError(
                "invalid_value", "Invalid 'stop': a stop string is empty.", param="stop"
            )
        if len(text) > MAX_STOP_CHARACTERS:
            raise InferenceError(
                "string_above_max_length",
                f"Invalid 'stop': string too long. Expected at most {MAX_STOP_CHARACTERS} "
                f"characters, but got {len(text)} instead.",
                param="stop",
            )


def _check_output(request: GenerateRequest, config: ModelConfig) -> None:
    output = request.output
    if output.HasField("n") and output.n < 1:
        raise _below("n", 1, output.n)
    for name in ("n", "best_of"):
        if getattr(output, name) > config.max_choices:
            raise _above(name, config.max_choices, getattr(output, name))
    if output.HasField("best_of") and output.best_of < max(output.n, 1):
        raise InferenceError(
            "invalid_value",
            "You requested that the server return more choices than it will generate "
            "(HINT: best_of must be greater than or equal to n)",
            param="best_of",
        )
    if output.logprobs > MAX_LOGPROBS:
        raise _above("top_logprobs", MAX_LOGPROBS, output.logprobs)
    if output.prompt_logprobs > MAX_LOGPROBS:
        raise _above("prompt_logprobs", MAX_LOGPROBS, output.prompt_logprobs)
    if output.echo and request.HasField("chat"):
        raise InferenceError("unsupported_parameter", "A chat takes no 'echo'.", param="echo")


def _check_constraint(request: GenerateRequest, config: ModelConfig) -> None:
    constraint = request.constraint
    rule = constraint.WhichOneof("rule")
    if rule == "json_schema":
        _check_schema(constraint.json_schema, "response_format")
    elif rule == "choices":
        if not constraint.choices.values:
            raise _empty("structured_outputs")
        _check_length(len(constraint.choices.values), MAX_LOGIT_BIAS, "structured_outputs")
    elif rule in ("regex", "grammar"):
        if not config.allow_patterns:
            raise InferenceError(
                "unsupported_parameter",
                f"Unsupported parameter: this server does not accept a caller's {rule}.",
                param="structured_outputs",
            )
        _check_schema(getattr(constraint, rule), "structured_outputs")


def _check_schema(text: str, param: str) -> None:
    if len(text) > MAX_SCHEMA_BYTES:
        raise InferenceError(
            "string_above_max_length",
            f"Invalid '{param}': schema too large. Expected at most {MAX_SCHEMA_BYTES} bytes.",
            param=param,
        )


def _check_decimal(name: str, value: float, lowest: float, highest: float | None) -> None:
    if not math.isfinite(value):
        raise InferenceError(
            "invalid_value", f"Invalid '{name}': expected a finite number.", param=name
        )
    if value < lowest:
        raise _below(name, lowest, value)
    if highest is not None and value > highest:
        raise _above(name, highest, value)


def _check_length(length: int, limit: int, param: str) -> None:
    if length > limit:
        raise InferenceError(
            "array_above_max_length",
            f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, "
            f"but got an array with length {length} instead.",
            param=param,
        )


def _missing(param: str) -> InferenceError:
    return InferenceError(
        "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param
    )


def _empty(param: str) -> InferenceError:
    return InferenceError(
        "empty_array",
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, "
        "but got an empty array instead.",
        param=param,
    )


def _below(name: str, lowest: float, value: float) -> InferenceError:
    kind = "integer" if isinstance(value, int) else "decimal"
    return InferenceError(
        f"{kind}_below_min_value",
        f"Invalid '{name}': {kind} below minimum value. Expected a value >= {lowest}, "
        f"but got {value:g} instead.",
        param=name,
    )


def _above(name: str, highest: float, value: float) -> InferenceError:
    kind = "integer" if isinstance(value, int) else "decimal"
    return InferenceError(
        f"{kind}_above_max_value",
        f"Invalid '{name}': {kind} above maximum value. Expected a value <= {highest}, "
        f"but got {value:g} instead.",
        param=name,
    )
