"""The tools of a chat request, as `tools` or in the legacy form, `functions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import UNSET

from contract import refusals
from edge.openai import errors
from edge.openai.chat.schema import (
    AllowedToolsChoice,
    ChatRequest,
    CustomTool,
    Function,
    FunctionName,
    FunctionTool,
    NamedCustom,
    NamedFunction,
)
from edge.openai.decoding.decoder import is_given
from edge.openai.errors import OpenAIError
from edge.openai.text.json_schema import read_object, root_fault, strict_fault
from isthmus.v1.chat_pb2 import ChatInput, Tool, ToolChoice

_MODES: Final = {
    "none": ToolChoice.MODE_NONE,
    "auto": ToolChoice.MODE_AUTO,
    "required": ToolChoice.MODE_REQUIRED,
}


def add_tools(request: ChatRequest, chat: ChatInput) -> None:
    """Converts the tools of `request`, and which of them may be called, and adds them to `chat`.

    Raises:
        OpenAIError: 400.
    """
    if request.tools is not UNSET and request.functions is not UNSET:
        raise errors.invalid_request(
            "'functions' and 'tools' cannot be given at the same time.", "functions"
        )
    _check_needs("parallel_tool_calls", request.parallel_tool_calls, "tools", request.tools)
    _check_needs("tool_choice", request.tool_choice, "tools", request.tools)
    _check_needs("function_call", request.function_call, "functions", request.functions)
    if request.tools is not UNSET:
        chat.tools.extend(_tools(request.tools))
        _add_choice(request, chat)
        if request.parallel_tool_calls is not UNSET:
            chat.parallel_tool_calls = request.parallel_tool_calls
    elif request.functions is not UNSET:
        chat.tools.extend(
            _tool(function, f"functions[{i}]") for i, function in enumerate(request.functions)
        )
        _add_function_call(request, chat)
        # A legacy response has one call at most.
        chat.parallel_tool_calls = False


def _check_needs(name: str, value: object, needed: str, needed_value: object) -> None:
    if value is not UNSET and needed_value is UNSET:
        raise OpenAIError.of(refusals.only_with_tools(name, needed))


def _tools(tools: Sequence[FunctionTool | CustomTool]) -> list[Tool]:
    converted = []
    for i, tool in enumerate(tools):
        if isinstance(tool, CustomTool):
            raise _unsupported_custom(f"tools[{i}].type")
        tool.check_refused(f"tools[{i}].")
        converted.append(_tool(tool.function, f"tools[{i}].function"))
    return converted


def _tool(function: Function, param: str) -> Tool:
    function.check_refused(f"{param}.")
    tool = Tool(name=function.name, description=function.description)
    if function.strict is not None:
        tool.strict = function.strict
    if is_given(function.parameters):
        param = f"{param}.parameters"
        schema = read_object(function.parameters, param)
        fault = None
        if function.strict:
            fault = strict_fault(schema.value)
        elif "type" in schema.value:
            fault = root_fault(schema.value)
        if fault:
            raise OpenAIError.of(refusals.invalid_function(function.name, fault, param))
        tool.parameters_json = schema.text
    return tool


def _unsupported_custom(param: str) -> OpenAIError:
    explanation = "'custom' tools are not supported; use 'function'."
    return OpenAIError.of(refusals.unsupported_value(param, explanation))


def _add_choice(request: ChatRequest, chat: ChatInput) -> None:
    match request.tool_choice:
        case str(mode):
            chat.tool_choice.mode = _MODES[mode]
        case NamedFunction(function=function):
            _check_known([function.name], chat, "tool_choice")
            chat.tool_choice.mode = ToolChoice.MODE_FUNCTION
            chat.tool_choice.function_name = function.name
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            _check_known(names, chat, "tool_choice")
            chat.tool_choice.mode = _MODES[allowed.mode]
            chat.tool_choice.allowed_functions.extend(names)
        case NamedCustom():
            raise _unsupported_custom("tool_choice.type")


def _add_function_call(request: ChatRequest, chat: ChatInput) -> None:
    match request.function_call:
        case str(mode):
            chat.tool_choice.mode = _MODES[mode]
        case FunctionName(name=name):
            _check_known([name], chat, "function_call")
            chat.tool_choice.mode = ToolChoice.MODE_FUNCTION
            chat.tool_choice.function_name = name


def _check_known(names: Sequence[str], chat: ChatInput, param: str) -> None:
    known = {tool.name for tool in chat.tools}
    for name in names:
        if name not in known:
            owner = "tools" if param == "tool_choice" else "functions"
            raise OpenAIError.of(refusals.unknown_tool(name, param, owner))
