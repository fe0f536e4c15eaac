"""The messages of refusals that both the edge and the inference service make.

A client gets the same error for the same fault over REST and over gRPC, message included. Most
messages and all codes are OpenAI's. A function here returns a Refusal, a plain value; each side
turns it into its own exception in one place:

  edge        OpenAIError.of(refusal)      HTTP status and the JSON error object
  inference   InferenceError.of(refusal)   gRPC status and google.rpc details

A message that only one side uses is defined in that side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from contract.limits import MAX_ALL_PARTS, MAX_CHAT_IMAGES, MAX_INPUT_TOKENS

# The reason of a refusal without a code: OpenAI's `code` is null.
NO_CODE: Final = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused.

    Attributes:
        reason: OpenAI's error code, or NO_CODE.
        message: Public text.
        param: Path of the parameter at fault, as OpenAI writes it ("messages[0].role").
    """

    reason: str
    message: str
    param: str | None = None


def shown(text: str, limit: int = 64) -> str:
    """Shortens a client's string and makes it valid UTF-8, to quote it in an error message."""
    text = text if len(text) <= limit else text[:limit] + "..."
    # Bytes of a URL or header that are not UTF-8 arrive as lone surrogates.
    return text.encode("utf-8", "replace").decode()


# Values of any parameter


def broken_rule(message: str, param: str) -> Refusal:
    """The request breaks a rule that has its own message and no code."""
    return Refusal(NO_CODE, message, param)


def invalid_value(message: str, param: str) -> Refusal:
    """A parameter has a value that cannot be used; `message` is the public text."""
    return Refusal("invalid_value", message, param)


def missing_parameter(param: str) -> Refusal:
    return Refusal("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def unsupported_parameter(param: str) -> Refusal:
    """A known parameter that the server supports with no model."""
    message = f"Unsupported parameter: '{param}' is not supported."
    return Refusal("unsupported_parameter", message, param)


def chat_to_embed() -> Refusal:
    hint = "Send 'input', a string or a list of strings. Chats go to /v1/chat/completions."
    message = f"Unsupported parameter: 'messages' is not supported for embeddings. {hint}"
    return Refusal("unsupported_parameter", message, "messages")


def unsupported_by_model(param: str) -> Refusal:
    """A parameter that this model does not support, and another may."""
    message = f"Unsupported parameter: '{param}' is not supported with this model."
    return Refusal("unsupported_parameter", message, param)


def unsupported_value(param: str, explanation: str) -> Refusal:
    """A value of a known parameter that the server, or this model, does not support."""
    return Refusal("unsupported_value", f"Unsupported value: {explanation}", param)


def unknown_choice(param: str, value: str, supported: Iterable[str]) -> Refusal:
    """A string that is none of the supported ones; `value` is quoted and shortened."""
    return invalid_value(f"Invalid value: {value}. {supported_values(supported)}", param)


def supported_values(values: Iterable[str]) -> str:
    """The sentence that lists the accepted values of a parameter."""
    quoted = [f"'{value}'" for value in sorted(values)]
    if len(quoted) < 3:
        return f"Supported values are: {' and '.join(quoted)}."
    return f"Supported values are: {', '.join(quoted[:-1])}, and {quoted[-1]}."


def empty_array(param: str) -> Refusal:
    message = (
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead."
    )
    return Refusal("empty_array", message, param)


def array_too_long(param: str, limit: int, length: int | None) -> Refusal:
    """An array above its limit; `length` is None if unknown."""
    got = "" if length is None else f", but got an array with length {length} instead"
    message = (
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}{got}."
    )
    return Refusal("array_above_max_length", message, param)


def too_many_properties(param: str, limit: int, count: int | None = None) -> Refusal:
    """An object with too many properties; `count` is None if unknown."""
    got = "" if count is None else f", but got an object with {count} properties instead"
    message = (
        f"Invalid '{param}': too many properties. Expected an object with at most {limit} "
        f"properties{got}."
    )
    return Refusal("object_above_max_properties", message, param)


def empty_string(param: str) -> Refusal:
    return invalid_value(
        f"Invalid '{param}': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
        param,
    )


def string_too_long(param: str, limit: int) -> Refusal:
    """A string above its limit, in characters or bytes."""
    message = f"Invalid '{param}': string too long. Expected a string with maximum length {limit}."
    return Refusal("string_above_max_length", message, param)


def invalid_name(param: str) -> Refusal:
    """The name of a tool or schema that has other characters than OpenAI allows."""
    return invalid_value(
        f"Invalid '{param}': string does not match pattern. Expected a string that matches the "
        "pattern '^[a-zA-Z0-9_-]+$'.",
        param,
    )


def out_of_range(param: str, kind: str, expected: str, got: str) -> Refusal:
    """A number outside its range.

    Args:
        param: The parameter.
        kind: "integer" or "decimal".
        expected: The violated bound, for example "<= 2", ">= 0" or "> 0".
        got: The value; "" if unknown.
    """
    side, code = (
        ("above maximum", "above_max") if "<" in expected else ("below minimum", "below_min")
    )
    but_got = f", but got {got} instead" if got else ""
    message = f"Invalid '{param}': {kind} {side} value. Expected a value {expected}{but_got}."
    return Refusal(f"{kind}_{code}_value", message, param)


# Parameters that hold a JSON object


def unusable_object(param: str) -> Refusal:
    """A parameter that must hold a JSON object but is not JSON, or is nested too deeply."""
    return invalid_value(f"Invalid '{param}': not a JSON object that can be used.", param)


def not_an_object(param: str) -> Refusal:
    """A parameter that must hold a JSON object but holds other JSON."""
    message = f"Invalid type for '{param}': expected an object."
    return Refusal("invalid_type", message, param)


def wrong_root_type(kind: object) -> str:
    """The message for a schema whose root has another `type` than "object"."""
    named = shown(kind) if isinstance(kind, str) else "None"
    return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{named}\"'."


def invalid_function(name: str, fault: str, param: str) -> Refusal:
    """A fault in the schema of a tool's parameters; `fault` is a sentence that describes it."""
    message = f"Invalid schema for function '{name}': {fault}"
    return Refusal("invalid_function_parameters", message, param)


def constraint_of_forced_call(param: str) -> Refusal:
    """A constraint of the text beside a tool choice that leaves no text."""
    return broken_rule(
        f"'{param}' cannot be used when 'tool_choice' forces a tool call: the answer has no text.",
        param,
    )


# Chats


def too_many_parts() -> Refusal:
    message = (
        "Invalid 'messages': too many content parts and tool calls. "
        f"At most {MAX_ALL_PARTS} are allowed."
    )
    return Refusal("array_above_max_length", message, "messages")


def too_many_images() -> Refusal:
    return invalid_value(
        f"Invalid 'messages': too many pictures. At most {MAX_CHAT_IMAGES} are allowed.", "messages"
    )


def json_not_mentioned() -> Refusal:
    """JSON mode is requested, but no message contains the word "json"."""
    return broken_rule(
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
        "'json_object'.",
        "messages",
    )


def only_with_tools(param: str, tools: str = "tools") -> Refusal:
    """A parameter that requires tools, in a request without `tools` (legacy: "functions")."""
    return broken_rule(
        f"Invalid value for '{param}': '{param}' is only allowed when '{tools}' are specified.",
        param,
    )


def unknown_tool(name: str, param: str = "tool_choice", tools: str = "tools") -> Refusal:
    """The request chooses a tool that is not in its list of tools."""
    return broken_rule(
        f"Invalid value for '{param}': '{shown(name)}' is not one of '{tools}'.", param
    )


# Other rules of text and embeddings


def best_of_below_n() -> Refusal:
    return broken_rule(
        "You requested that the server return more choices than it will generate (HINT: best_of "
        "must be at least n).",
        "best_of",
    )


def biased_token_too_large(token: str, largest: int) -> Refusal:
    """A key of logit_bias above the largest token id."""
    return broken_rule(
        f"Invalid key in 'logit_bias': {token}. Maximum value is {largest}.", "logit_bias"
    )


def unknown_token(token: int, size: int, param: str) -> Refusal:
    """A token id that a vocabulary of `size` ids does not have."""
    return invalid_value(
        f"Invalid value for '{param}': token {token} is not in the vocabulary of {size} tokens.",
        param,
    )


def input_path(index: int, count: int) -> str:
    """The path of one of `count` inputs of an embeddings request."""
    return "input" if count == 1 else f"input[{index}]"


def invalid_input(param: str = "input") -> Refusal:
    """An empty input of an embeddings request, or a list that mixes strings and token ids."""
    return broken_rule(
        f"'$.{param}' is invalid. Please check the API reference: "
        "https://platform.openai.com/docs/api-reference.",
        param,
    )


def too_many_input_tokens() -> Refusal:
    return broken_rule(
        f"Invalid 'input': all inputs together may have at most {MAX_INPUT_TOKENS} tokens.", "input"
    )


# Models


def missing_model() -> Refusal:
    return Refusal(NO_CODE, "you must provide a model parameter")


def unknown_model(name: str) -> Refusal:
    message = f"The model `{shown(name, 256)}` does not exist or you do not have access to it."
    return Refusal("model_not_found", message)


def not_a_chat_model(endpoint: str = "v1/chat/completions") -> Refusal:
    hint = " Did you mean to use v1/completions?" if endpoint == "v1/chat/completions" else ""
    message = f"This is not a chat model and thus not supported in the {endpoint} endpoint.{hint}"
    return Refusal("model_not_capable", message, "model")


def not_a_completion_model() -> Refusal:
    message = "This model is not supported in the v1/completions endpoint."
    return Refusal("model_not_capable", message, "model")


def not_an_embedding_model() -> Refusal:
    """Embeddings requested from another model; OpenAI's error has no `param`."""
    message = "You are not allowed to generate embeddings from this model"
    return Refusal("embeddings_not_allowed", message)


def not_an_image_model() -> Refusal:
    return Refusal("model_not_capable", "This model does not generate images.", "model")
