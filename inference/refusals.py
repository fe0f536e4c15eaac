"""Refusals as InferenceErrors: in shared words (contract/refusals.py) and in the service's own."""

from __future__ import annotations

from contract import refusals
from contract.refusals import Refusal
from inference.errors import InferenceError


def refused(refusal: Refusal) -> InferenceError:
    """An error in the words that both sides share."""
    return InferenceError(refusal.reason, refusal.message, param=refusal.param)


def broken_rule(message: str, param: str) -> InferenceError:
    """A rule with its own words, for which OpenAI has no code."""
    return InferenceError("invalid_request_error", message, param=param)


def invalid_value(message: str, param: str) -> InferenceError:
    """A value that cannot be used."""
    return InferenceError("invalid_value", message, param=param)


def missing(param: str) -> InferenceError:
    return refused(refusals.missing(param))


def unsupported_parameter(param: str) -> InferenceError:
    return refused(refusals.unsupported_parameter(param))


def unsupported_value(param: str, explanation: str) -> InferenceError:
    return refused(refusals.unsupported_value(param, explanation))


def empty_array(param: str) -> InferenceError:
    return refused(refusals.empty_array(param))


def empty_string(param: str) -> InferenceError:
    return refused(refusals.empty_string(param))


def check_length(length: int, limit: int, param: str) -> None:
    if length > limit:
        raise refused(refusals.array_too_long(param, limit, length))


def check_properties(count: int, limit: int, param: str) -> None:
    if count > limit:
        raise refused(refusals.too_many_properties(param, limit, count))


def check_string(length: int, limit: int, param: str) -> None:
    if length > limit:
        raise refused(refusals.string_too_long(param, limit))


def below(name: str, lowest: float, value: float, *, allowed: bool = True) -> InferenceError:
    """A number under its range; `allowed` tells whether the bound itself is in it."""
    kind = _kind(value)
    return InferenceError(
        f"{kind}_below_min_value",
        f"Invalid '{name}': {kind} below minimum value. Expected a value "
        f"{'>=' if allowed else '>'} {lowest}, but got {value:.15g} instead.",
        param=name,
    )


def above(name: str, highest: float, value: float) -> InferenceError:
    """A number over its range."""
    kind = _kind(value)
    return InferenceError(
        f"{kind}_above_max_value",
        f"Invalid '{name}': {kind} above maximum value. Expected a value <= {highest}, "
        f"but got {value:.15g} instead.",
        param=name,
    )


def _kind(value: float) -> str:
    return "integer" if isinstance(value, int) else "decimal"


# Models


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


def missing_model() -> InferenceError:
    return refused(refusals.missing_model())


def unknown_model(name: str) -> InferenceError:
    return refused(refusals.unknown_model(name))


def not_a_chat_model() -> InferenceError:
    return refused(refusals.not_a_chat_model())


def not_a_completion_model() -> InferenceError:
    return refused(refusals.not_a_completion_model())


def not_an_embedding_model() -> InferenceError:
    return refused(refusals.not_an_embedding_model())


def not_an_image_model() -> InferenceError:
    return refused(refusals.not_an_image_model())


# Pictures


def prompt_too_long(param: str, limit: int, tokens: int) -> InferenceError:
    """More than the model reads; it would not see the rest."""
    return InferenceError(
        "string_above_max_length",
        f"Invalid '{param}': the model reads at most {limit} tokens, but got {tokens}.",
        param=param,
    )


def unsafe_picture() -> InferenceError:
    """The model's own safety checker refused what it drew."""
    return InferenceError(
        "content_policy_violation",
        "Your request was rejected by the safety checker of the model.",
    )
