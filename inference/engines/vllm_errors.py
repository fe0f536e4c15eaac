"""vLLM's refusals in our words. Its own texts can carry prompts and paths and go to the log."""

from __future__ import annotations

from typing import Final

from vllm.exceptions import VLLMValidationError

from contract.parameters import PARAMETERS
from inference.errors import InferenceError

# vLLM's parameter names -> OpenAI's, where they differ.
_PARAMETERS: Final = {
    "input_text": "prompt",
    "tool_choice.function": "tool_choice",
    "tool_choice.function.name": "tool_choice",
    "tool_calls": "messages",
}
# vLLM names these at the beginning of its text only.
_NAMED_IN_TEXT: Final = {"n", "stop", *(parameter.name for parameter in PARAMETERS)}


def invalid(param: str, why: str) -> InferenceError:
    """A value that the model cannot use; `why` completes "Invalid value for 'x': "."""
    return InferenceError("invalid_value", f"Invalid value for '{param}': {why}", param=param)


def refused(error: Exception, param: str) -> InferenceError:
    """vLLM said no to a request.

    Args:
        error: What it raised.
        param: The field at fault if the error does not name one.
    """
    if isinstance(error, VLLMValidationError):
        first = str(error.args[0]).split(" ", 1)[0] if error.args else ""
        if error.parameter:
            param = _PARAMETERS.get(error.parameter, error.parameter)
        elif first in _NAMED_IN_TEXT:
            param = first
    return invalid(param, "this model cannot be run with it.")
