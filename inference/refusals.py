"""Refusals that only the inference service words, and checks that raise the shared ones.

The texts that the edge uses as well stand in contract/refusals.py.
"""

from __future__ import annotations

from contract import refusals
from contract.refusals import NO_CODE
from inference.errors import InferenceError


def broken_rule(message: str, param: str) -> InferenceError:
    """A rule that has a text of its own and no code."""
    return InferenceError(NO_CODE, message, param=param)


def invalid_value(message: str, param: str) -> InferenceError:
    """A value that cannot be used, with a text of its own."""
    return InferenceError("invalid_value", message, param=param)


def check_length(length: int, limit: int, param: str) -> None:
    """Refuses a list with more than `limit` entries."""
    if length > limit:
        raise InferenceError.of(refusals.array_too_long(param, limit, length))


def check_properties(count: int, limit: int, param: str) -> None:
    """Refuses an object with more than `limit` properties."""
    if count > limit:
        raise InferenceError.of(refusals.too_many_properties(param, limit, count))


def check_string(length: int, limit: int, param: str) -> None:
    """Refuses a string of more than `limit` characters, or bytes."""
    if length > limit:
        raise InferenceError.of(refusals.string_too_long(param, limit))


def below(param: str, lowest: float, value: float, *, allowed: bool = True) -> InferenceError:
    """A number below its range; `allowed` is whether the range includes `lowest` itself."""
    return _out_of_range(param, f"{'>=' if allowed else '>'} {lowest}", value)


def above(param: str, highest: float, value: float) -> InferenceError:
    """A number above its range."""
    return _out_of_range(param, f"<= {highest}", value)


def _out_of_range(param: str, expected: str, value: float) -> InferenceError:
    kind = "integer" if isinstance(value, int) else "decimal"
    return InferenceError.of(refusals.out_of_range(param, kind, expected, f"{value:.15g}"))


# The model's own limits


def context_error(
    chat: bool, context_length: int, prompt_tokens: int, answer_tokens: int
) -> InferenceError:
    """The prompt, or prompt and answer together, exceed the context.

    OpenAI has two texts: that for chats has a code and a param, that for completions and
    embeddings neither.
    """
    if not chat:
        return InferenceError(
            NO_CODE,
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


def prompt_too_long(param: str, limit: int, tokens: int) -> InferenceError:
    """A prompt of an image that has more tokens than the model's text encoder reads."""
    return InferenceError(
        "string_above_max_length",
        f"Invalid '{param}': the model reads at most {limit} tokens, but got {tokens}.",
        param=param,
    )


def unsafe_picture() -> InferenceError:
    """The model's safety checker rejected the finished image."""
    return InferenceError(
        "content_policy_violation",
        "Your request was rejected by the safety checker of the model.",
    )
