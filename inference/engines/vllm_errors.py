"""Converts vLLM's exceptions. Their texts can hold prompts and paths, and are only logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.v1.engine import exceptions
from vllm.v1.engine.async_llm import AsyncLLM

from contract.parameters import PARAMETERS
from inference.engines.base import EngineDeadError
from inference.errors import InferenceError, internal_error, invalid_value
from isthmus.v1.generate_pb2 import GenerateRequest

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
    return invalid_value(f"Invalid value for '{param}': {why}", param)


def refused(error: Exception, param: str) -> InferenceError:
    """vLLM refused a request; `param` is the field at fault if the error does not name one."""
    if isinstance(error, VLLMValidationError):
        first = str(error.args[0]).split(" ", 1)[0] if error.args else ""
        if error.parameter:
            param = _PARAMETERS.get(error.parameter, error.parameter)
        elif first in _NAMED_IN_TEXT:
            param = first
    return invalid(param, "this model cannot be run with it.")


@contextmanager
def engine_errors(engine: AsyncLLM, request: GenerateRequest) -> Iterator[None]:
    """Raises vLLM's exceptions as those of the engine contract."""
    try:
        yield
    except exceptions.EngineDeadError as error:
        raise EngineDeadError from error
    except VLLMClientError as error:
        param = "messages" if request.HasField("chat") else "prompt"
        raise refused(error, param) from error
    except GracefulHTTPError as error:
        raise InferenceError(
            "server_overloaded", "The engine is busy.", retry_after_ms=1000
        ) from error
    except exceptions.EngineGenerateError as error:
        if engine.errored:
            raise EngineDeadError from error
        raise internal_error() from error
