"""The words in which both sides refuse a request: OpenAI's, so that both faces read alike.

Each function returns a Refusal; the edge makes an OpenAIError of it (edge/openai/errors), the
inference service an InferenceError (inference/errors.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from contract import limits

INTERNAL_ERROR: Final = "The server had an error while processing your request. Sorry about that!"
OVERLOADED: Final = "The engine is currently overloaded, please try again later"

# Characters of a caller's text that a message repeats.
_SHOWN_CHARACTERS: Final = 64


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        reason: OpenAI's error code; "invalid_request_error" where OpenAI has none.
        message: Public text.
        param: Path of the parameter at fault; None for no single one.
    """

    reason: str
    message: str
    param: str | None = None


def shown(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """A caller's text as a message can repeat it: short, and without lone surrogates.

    Bytes of addresses and headers that are not UTF-8 arrive as surrogates, which JSON cannot carry.
    """
    text = text if len(text) <= limit else text[:limit] + "..."
    return text.encode("utf-8", "replace").decode()


# Models


def missing_model() -> Refusal:
    return Refusal("invalid_request_error", "you must provide a model parameter")


def unknown_model(name: str) -> Refusal:
    return Refusal(
        "model_not_found",
        f"The model `{shown(name, 256)}` does not exist or you do not have access to it.",
    )


def not_a_chat_model() -> Refusal:
    return Refusal(
        "model_not_capable",
        "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
        "Did you mean to use v1/completions?",
        "model",
    )


def not_a_completion_model() -> Refusal:
    return Refusal(
        "model_not_capable", "This model is not supported in the v1/completions endpoint.", "model"
    )


def not_an_embedding_model() -> Refusal:
    return Refusal(
        "embeddings_not_allowed", "You are not allowed to generate embeddings from this model"
    )


def not_an_image_model() -> Refusal:
    return Refusal("model_not_capable", "This model does not generate images.", "model")


# Any parameter


def missing(param: str) -> Refusal:
    return Refusal("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def unsupported_parameter(param: str) -> Refusal:
    return Refusal(
        "unsupported_parameter",
        f"Unsupported parameter: '{param}' is not supported with this model.",
        param,
    )


def unsupported_value(param: str, explanation: str) -> Refusal:
    return Refusal("unsupported_value", f"Unsupported value: {explanation}", param)


def empty_array(param: str) -> Refusal:
    return Refusal(
        "empty_array",
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
        param,
    )


def empty_string(param: str) -> Refusal:
    return Refusal(
        "invalid_value",
        f"Invalid '{param}': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
        param,
    )


def array_too_long(param: str, limit: int, length: int | None) -> Refusal:
    """`length` is None where the list was not read to its end."""
    got = "" if length is None else f", but got an array with length {length} instead"
    return Refusal(
        "array_above_max_length",
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}{got}.",
        param,
    )


def too_many_properties(param: str, limit: int, count: int | None = None) -> Refusal:
    """`count` is None where the object was not read to its end."""
    got = "" if count is None else f", but got an object with {count} properties instead"
    return Refusal(
        "object_above_max_properties",
        f"Invalid '{param}': too many properties. Expected an object with at most {limit} "
        f"properties{got}.",
        param,
    )


def string_too_long(param: str, limit: int) -> Refusal:
    return Refusal(
        "string_above_max_length",
        f"Invalid '{param}': string too long. Expected a string with maximum length {limit}.",
        param,
    )


def not_an_object(param: str) -> Refusal:
    return Refusal(
        "invalid_value", f"Invalid '{param}': not a JSON object that can be used.", param
    )


# Rules of single parameters


def best_of_below_n() -> Refusal:
    return Refusal(
        "invalid_request_error",
        "You requested that the server return more choices than it will generate (HINT: "
        "best_of must be at least n).",
        "best_of",
    )


def too_many_parts() -> Refusal:
    return Refusal(
        "array_above_max_length",
        "Invalid 'messages': too many content parts and tool calls. "
        f"At most {limits.MAX_ALL_PARTS} are allowed.",
        "messages",
    )


def too_many_chat_images() -> Refusal:
    return Refusal(
        "invalid_value",
        f"Invalid 'messages': too many pictures. At most {limits.MAX_CHAT_IMAGES} are allowed.",
        "messages",
    )


def stray_tool_message(index: int) -> Refusal:
    return Refusal(
        "invalid_request_error",
        "Invalid parameter: messages with role 'tool' must be a response to a "
        "preceeding message with 'tool_calls'.",
        f"messages.[{index}].role",
    )


def unanswered_tool_calls(call_ids: Iterable[str]) -> Refusal:
    return Refusal(
        "invalid_request_error",
        "An assistant message with 'tool_calls' must be followed by tool messages responding "
        "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
        f"{shown(', '.join(list(call_ids)[:8]), 256)}",
        "messages",
    )


def json_mode_needs_the_word() -> Refusal:
    return Refusal(
        "invalid_request_error",
        "'messages' must contain the word 'json' in some form, to use 'response_format' of "
        "type 'json_object'.",
        "messages",
    )


def invalid_input() -> Refusal:
    return Refusal(
        "invalid_request_error",
        "'$.input' is invalid. Please check the API reference: "
        "https://platform.openai.com/docs/api-reference.",
        "input",
    )


def too_many_input_tokens() -> Refusal:
    return Refusal(
        "invalid_request_error",
        f"Invalid 'input': all inputs together may have at most {limits.MAX_INPUT_TOKENS} tokens.",
        "input",
    )
