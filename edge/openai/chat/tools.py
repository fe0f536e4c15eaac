"""The tools of a chat request, as `tools` or in the legacy form, `functions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from contract import refusals
from edge.openai import errors
from edge.openai.chat import schema
from edge.openai.decoding.decoder import is_given
from edge.openai.errors import OpenAIError
from edge.openai.text.json_schema import read_object, root_fault, strict_fault
from isthmus.v1.chat_pb2 import ChatInput, Tool, ToolChoice

_Choice = schema.ToolChoice | schema.FunctionName | None
_MODES: Final = {
    "none": ToolChoice.MODE_NONE,
    "auto": ToolChoice.MODE_AUTO,
    "required": ToolChoice.MODE_REQUIRED,
}


def add_tools(request: schema.ChatRequest, chat: ChatInput) -> None:
    """Adds the tools of `request`, and which of them the model may call, to `chat`.

    Raises:
        OpenAIError: 400.
    """
    if request.tools and request.functions:
        raise errors.invalid_request(
            "'functions' and 'tools' cannot be given at the same time.", "functions"
        )
    if request.parallel_tool_calls is not None and request.tools is None:
        raise OpenAIError.of(refusals.only_with_tools("parallel_tool_calls", "tools"))
    _check_choice("tool_choice", request.tool_choice, "tools", request.tools)
    _check_choice("function_call", request.function_call, "functions", request.functions)
    if request.tools:
        chat.tools.extend(_tools(request.tools))
        _add_choice(request.tool_choice, "tool_choice", chat)
        if request.parallel_tool_calls is not None:
            chat.parallel_tool_calls = request.parallel_tool_calls
    elif request.functions:
        chat.tools.extend(
            _tool(function, f"functions[{i}]") for i, function in enumerate(request.functions)
        )
        _add_choice(request.function_call, "function_call", chat)
        # A legacy response has at most one call.
        chat.parallel_tool_calls = False


def _check_choice(
    param: str, choice: _Choice, owner: str, functions: Sequence[object] | None
) -> None:
    """Refuses a choice among no functions, unless an empty list is sent and no call is forced."""
    if functions or choice is None or (functions is not None and choice in ("none", "auto")):
        return
    raise OpenAIError.of(refusals.only_with_tools(param, owner))


def _tools(tools: Sequence[schema.FunctionTool | schema.CustomTool]) -> list[Tool]:
    converted = []
    for i, tool in enumerate(tools):
        if isinstance(tool, schema.CustomTool):
            raise _unsupported_custom(f"tools[{i}].type")
        tool.check_refused(f"tools[{i}].")
        converted.append(_tool(tool.function, f"tools[{i}].function"))
    return converted


def _tool(function: schema.Function, param: str) -> Tool:
    function.check_refused(f"{param}.")
    tool = Tool(name=function.name, description=function.description)
    if function.strict is not None:
        tool.strict = function.strict
    if is_given(function.parameters):
        param = f"{param}.parameters"
        parameters = read_object(function.parameters, param)
        fault = None
        if function.strict:
            fault = strict_fault(parameters.value)
        elif "type" in parameters.value:
            fault = root_fault(parameters.value)
        if fault:
            raise OpenAIError.of(refusals.invalid_function(function.name, fault, param))
        tool.parameters_json = parameters.text
    return tool


def _unsupported_custom(param: str) -> OpenAIError:
    explanation = "'custom' tools are not supported; use 'function'."
    return OpenAIError.of(refusals.unsupported_value(param, explanation))


def _add_choice(choice: _Choice, param: str, chat: ChatInput) -> None:
    match choice:
        case str(mode):
            chat.tool_choice.mode = _MODES[mode]
        case (
            schema.FunctionName(name=name)
            | schema.NamedFunction(function=schema.FunctionName(name=name))
        ):
            _check_known([name], chat, param)
            chat.tool_choice.mode = ToolChoice.MODE_FUNCTION
            chat.tool_choice.function_name = name
        case schema.AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            _check_known(names, chat, param)
            chat.tool_choice.mode = _MODES[allowed.mode]
            chat.tool_choice.allowed_functions.extend(names)
        case schema.NamedCustom():
            raise _unsupported_custom(f"{param}.type")


def _check_known(names: Sequence[str], chat: ChatInput, param: str) -> None:
    known = {tool.name for tool in chat.tools}
    for name in names:
        if name not in known:
            owner = "tools" if param == "tool_choice" else "functions"
            raise OpenAIError.of(refusals.unknown_tool(name, param, owner))
