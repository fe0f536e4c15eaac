"""The tools of a response as the tools of a chat, and the calls' way back.

type             in the chat
---------------  -------------------------------------------------------------------------------
function         the function
custom           a function with one text (custom_input.py)
namespace        each of its tools, as NAMESPACE__NAME
any other        nothing: the server cannot run it, and the model does not see it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

from msgspec import Raw, Struct

from contract import refusals
from contract.limits import MAX_NAME_CHARACTERS, MAX_TOOLS
from edge.openai import errors
from edge.openai.chat import schema as chat
from edge.openai.decoding.decoder import Schema, is_given
from edge.openai.errors import OpenAIError
from edge.openai.responses import custom_input
from edge.openai.responses import tool_schema as schema

_OFFERED: Final[Schema[schema.OfferedTool]] = Schema(schema.OfferedTool)
_TOOLS: Final[Schema[list[Raw]]] = Schema(list[Raw])
_OFFERED_TYPES: Final = ("function", "custom", "namespace")
_NO_PARAMETERS: Final = Raw(b"null")


class _Kind(Struct):
    """The type of a tool."""

    type: str


_KIND: Final[Schema[_Kind]] = Schema(_Kind)


class Called(Struct, frozen=True, gc=False):
    """How a client calls a tool.

    Attributes:
        name: Its name, in its namespace.
        namespace: None if it has none.
        custom: Whether it is a custom tool.
    """

    name: str
    namespace: str | None = None
    custom: bool = False


class Tools:
    """The tools of one request.

    Attributes:
        shown: Those that the model sees, as the response repeats them.
        in_chat: The tools of the chat.
        places: Places of the chat's tools, each with its place in the request.
    """

    def __init__(self) -> None:
        self.shown: list[schema.OfferedTool] = []
        self.in_chat: list[chat.FunctionTool] = []
        self.places: list[tuple[str, str]] = []
        self._called: dict[str, Called] = {}

    def called(self, name: str) -> Called:
        """How a client calls the tool with this name in the chat."""
        return self._called.get(name) or Called(name)

    def name_in_chat(self, name: str, namespace: str | None) -> str:
        """The name in the chat of a tool that is called so by a client."""
        return f"{namespace}__{name}" if namespace else name

    def names_of(self, namespace: str | None) -> list[str]:
        """The names in the chat of all tools of a namespace."""
        return [name for name, called in self._called.items() if called.namespace == namespace]

    def add(self, i: int, tool: schema.OfferedTool) -> None:
        """Adds the i-th tool of the request.

        Raises:
            OpenAIError: 400.
        """
        self.shown.append(_shown(tool))
        place = f"tools[{i}]"
        if not isinstance(tool, schema.NamespaceTool):
            self._add(tool, place, None)
            return
        for k, inner in enumerate(tool.tools):
            self._add(inner, f"{place}.tools[{k}]", tool.name)

    def _add(
        self,
        tool: schema.ResponseFunction | schema.ResponseCustomTool,
        place: str,
        namespace: str | None,
    ) -> None:
        name = self.name_in_chat(tool.name, namespace)
        if name in self._called:
            raise errors.invalid_request(
                f"Invalid '{place}.name': another tool has the name '{name}' too.",
                f"{place}.name",
                "invalid_value",
            )
        if len(name) > MAX_NAME_CHARACTERS:
            raise OpenAIError.of(refusals.string_too_long(f"{place}.name", MAX_NAME_CHARACTERS))
        custom = isinstance(tool, schema.ResponseCustomTool)
        self._called[name] = Called(tool.name, namespace, custom)
        self.places.append((f"tools[{len(self.in_chat)}].function", place))
        if isinstance(tool, schema.ResponseCustomTool):
            function = chat.Function(
                name=name, description=_description(tool), parameters=custom_input.SCHEMA
            )
        else:
            function = chat.Function(
                name=name,
                description=tool.description,
                parameters=tool.parameters,
                strict=tool.strict,
            )
        self.in_chat.append(chat.FunctionTool(function=function))


@overload
def _shown(tool: schema.ResponseFunction) -> schema.ResponseFunction: ...
@overload
def _shown(tool: schema.ResponseCustomTool) -> schema.ResponseCustomTool: ...
@overload
def _shown(tool: schema.NamespaceTool) -> schema.NamespaceTool: ...
def _shown(tool: schema.OfferedTool) -> schema.OfferedTool:
    """The tool without members that have no effect, and with all that are null."""
    match tool:
        case schema.ResponseFunction():
            parameters = tool.parameters if is_given(tool.parameters) else _NO_PARAMETERS
            return schema.ResponseFunction(
                name=tool.name,
                description=tool.description,
                parameters=parameters,
                strict=tool.strict,
            )
        case schema.ResponseCustomTool():
            return schema.ResponseCustomTool(
                name=tool.name, description=tool.description, format=tool.format
            )
        case schema.NamespaceTool():
            return schema.NamespaceTool(
                name=tool.name,
                description=tool.description,
                tools=[_shown(inner) for inner in tool.tools],
            )


def _description(tool: schema.ResponseCustomTool) -> str | None:
    """The description of a custom tool. The model sees its grammar, and nothing enforces it."""
    if not isinstance(tool.format, schema.GrammarText):
        return tool.description
    grammar = f"The input obeys this {tool.format.syntax} grammar:\n{tool.format.definition}"
    return f"{tool.description}\n\n{grammar}" if tool.description else grammar


def read_tools(value: Raw, *, ignore_unknown: bool) -> Tools:
    """Decodes `tools`.

    Raises:
        OpenAIError: 400.
    """
    tools = Tools()
    entries = _TOOLS.decode(bytes(value), at="tools")
    if len(entries) > MAX_TOOLS:
        raise OpenAIError.of(refusals.array_too_long("tools", MAX_TOOLS, len(entries)))
    for i, entry in enumerate(entries):
        at = f"tools[{i}]"
        if _KIND.decode(bytes(entry), at=at).type in _OFFERED_TYPES:
            tool = _OFFERED.decode(bytes(entry), ignore_unknown=ignore_unknown, at=at)
            tools.add(i, tool)
    if len(tools.in_chat) > MAX_TOOLS:
        raise OpenAIError.of(refusals.array_too_long("tools", MAX_TOOLS, len(tools.in_chat)))
    return tools


def choice_in_chat(
    choice: schema.ResponseToolChoice | None, tools: Tools
) -> chat.ToolChoice | None:
    """The tool choice of the chat.

    Raises:
        OpenAIError: 400, all of the allowed tools are left out.
    """
    if not tools.in_chat and choice in ("auto", "none"):
        return None
    match choice:
        case schema.ChosenFunction(name=name) | schema.ChosenCustomTool(name=name):
            return chat.NamedFunction(function=chat.FunctionName(name=name))
        case schema.AllowedResponseTools(mode=mode, tools=allowed):
            names = _allowed(allowed, tools)
            if not names and mode == "auto":
                return "none" if tools.in_chat else None
            if not names:
                raise OpenAIError.of(
                    refusals.unsupported_value(
                        "tool_choice.tools", "none of these tools can be called here."
                    )
                )
            entries = [
                chat.AllowedFunction(type="function", function=chat.FunctionName(name=name))
                for name in names
            ]
            return chat.AllowedToolsChoice(
                allowed_tools=chat.AllowedTools(mode=mode, tools=entries)
            )
        case mode:
            return mode


def _allowed(allowed: Sequence[schema.AllowedTool], tools: Tools) -> list[str]:
    names: dict[str, None] = {}
    for tool in allowed:
        if tool.type == "namespace":
            names |= dict.fromkeys(tools.names_of(tool.name))
        elif tool.type in _OFFERED_TYPES and tool.name is not None:
            names[tools.name_in_chat(tool.name, tool.namespace)] = None
    return list(names)
