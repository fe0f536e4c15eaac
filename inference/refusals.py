"""The words in which requests are refused: OpenAI's, so that both faces say the same."""

from __future__ import annotations

from typing import Final

from inference.errors import InferenceError

_SHOWN_CHARACTERS: Final = 64


def shown(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """A caller's text as a message may repeat it."""
    return text if len(text) <= limit else text[:limit] + "..."


def broken_rule(message: str, param: str) -> InferenceError:
    """A rule with its own words, for which OpenAI has no code."""
    return InferenceError("invalid_request_error", message, param=param)


def invalid_value(message: str, param: str) -> InferenceError:
    """A value that cannot be used."""
    return InferenceError("invalid_value", message, param=param)


def missing(param: str) -> InferenceError:
    """A required member is absent."""
    return InferenceError(
        "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param
    )


def unsupported_parameter(param: str) -> InferenceError:
    """A member that the model has no use for."""
    return InferenceError(
        "unsupported_parameter",
        f"Unsupported parameter: '{param}' is not supported with this model.",
        param=param,
    )


def unsupported_value(param: str, explanation: str) -> InferenceError:
    """A value that the model has no use for."""
    return InferenceError("unsupported_value", f"Unsupported value: {explanation}", param=param)


def empty_array(param: str) -> InferenceError:
    """A list that needs an entry."""
    return InferenceError(
        "empty_array",
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, "
        "but got an empty array instead.",
        param=param,
    )


def empty_string(param: str) -> InferenceError:
    """A text that needs a character."""
    return invalid_value(
        f"Invalid '{param}': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
        param,
    )


def check_length(length: int, limit: int, param: str) -> None:
    """Refuses a list above its limit."""
    if length > limit:
        raise InferenceError(
            "array_above_max_length",
            f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, "
            f"but got an array with length {length} instead.",
            param=param,
        )


def check_properties(count: int, limit: int, param: str) -> None:
    """Refuses an object above its limit."""
    if count > limit:
        raise InferenceError(
            "object_above_max_properties",
            f"Invalid '{param}': too many properties. Expected an object with at most {limit} "
            f"properties, but got an object with {count} properties instead.",
            param=param,
        )


def check_string(length: int, limit: int, param: str) -> None:
    """Refuses a text above its limit."""
    if length > limit:
        raise InferenceError(
            "string_above_max_length",
            f"Invalid '{param}': string too long. Expected a string with maximum length {limit}.",
            param=param,
        )


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
    """The request names no model."""
    return InferenceError("invalid_request_error", "you must provide a model parameter")


def unknown_model(name: str) -> InferenceError:
    """No such model."""
    return InferenceError(
        "model_not_found",
        f"The model `{shown(name, 256)}` does not exist or you do not have access to it.",
    )


def not_a_chat_model() -> InferenceError:
    """A chat for a model that cannot chat."""
    return InferenceError(
        "model_not_capable",
        "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
        "Did you mean to use v1/completions?",
        param="model",
    )


def not_a_completion_model() -> InferenceError:
    """A text for a model that makes none."""
    return InferenceError(
        "model_not_capable",
        "This model is not supported in the v1/completions endpoint.",
        param="model",
    )


def not_an_embedding_model() -> InferenceError:
    """Inputs for a model that makes no vectors; OpenAI names no member here."""
    return InferenceError(
        "embeddings_not_allowed", "You are not allowed to generate embeddings from this model"
    )


def not_an_image_model() -> InferenceError:
    """A picture wanted of a model that makes none."""
    return InferenceError(
        "model_not_capable", "This model does not generate images.", param="model"
    )


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
