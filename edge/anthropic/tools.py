"""The tools of a Messages request as those of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from contract import refusals
from edge.anthropic import schema, turn_schema
from edge.openai.chat import schema as chat
from edge.openai.decoding.decoder import is_given
from edge.openai.errors import OpenAIError

_CUSTOM: Final = (None, "custom")
# Beginnings of the types of tools that Anthropic's servers run; nothing here can run them.
_SEARCH: Final = "tool_search_tool_"
_RUN_BY_ANTHROPIC: Final = (
    _SEARCH, "web_search_", "web_fetch_", "code_execution_", "advisor_", "mcp_toolset",
)  # fmt: skip


def shown_tools(
    tools: Sequence[schema.ToolParam], turns: Sequence[turn_schema.Turn]
) -> list[tuple[int, schema.ToolParam]]:
    """The tools that the model sees, each with its index in `tools`.

    A tool with `defer_loading` is shown once a block of the turns names it; at once if the server
    should have searched for it.

    Raises:
        OpenAIError: 400.
    """
    found: list[tuple[int, schema.ToolParam]] = []
    searched = any((tool.type or "").startswith(_SEARCH) for tool in tools)
    changes = _changes(turns)
    for i, tool in enumerate(tools):
        if tool.type not in _CUSTOM:
            if not tool.type.startswith(_RUN_BY_ANTHROPIC):
                raise OpenAIError.of(
                    refusals.unsupported_value(
                        f"tools[{i}].type",
                        f"'{refusals.shown(tool.type)}' tools are not supported; use a tool with "
                        "an 'input_schema'.",
                    )
                )
            continue
        if tool.name is None:
            raise OpenAIError.of(refusals.missing_parameter(f"tools[{i}].name"))
        if not is_given(tool.input_schema):
            raise OpenAIError.of(refusals.missing_parameter(f"tools[{i}].input_schema"))
        if changes.get(tool.name, searched or not tool.defer_loading):
            found.append((i, tool))
    return found


def _changes(turns: Sequence[turn_schema.Turn]) -> dict[str, bool]:
    """The tools that blocks of the turns show or hide."""
    changes: dict[str, bool] = {}
    for i, turn in enumerate(turns):
        for j, block in enumerate(() if isinstance(turn.content, str) else turn.content):
            match block:
                case turn_schema.ToolResultBlock(content=list(inner)):
                    changes |= {
                        each.tool_name: True
                        for each in inner
                        if isinstance(each, turn_schema.ToolReferenceBlock)
                    }
                case turn_schema.ToolAdditionBlock(tool=turn_schema.ToolName(name=name)):
                    changes[name] = True
                case turn_schema.ToolRemovalBlock(tool=turn_schema.ToolName(name=name)):
                    changes[name] = False
                case turn_schema.ToolAdditionBlock() | turn_schema.ToolRemovalBlock():
                    explanation = "a tool is changed by reference only; define it in 'tools'."
                    at = f"messages[{i}].content[{j}].tool.type"
                    raise OpenAIError.of(refusals.unsupported_value(at, explanation))
    return changes


def chat_tool(tool: schema.ToolParam) -> chat.FunctionTool:
    """A tool of a chat; its `strict` is left out, because OpenAI's rules for it are narrower."""
    return chat.FunctionTool(
        function=chat.Function(
            name=tool.name or "", description=tool.description, parameters=tool.input_schema
        )
    )


def chat_choice(
    choice: schema.MessagesToolChoice | None, *, has_tools: bool
) -> chat.ToolChoice | None:
    """The chat's `tool_choice`; None for a choice that changes nothing."""
    match choice:
        case schema.AnyToolChoice():
            return "required"
        case schema.OneToolChoice(name=name):
            return chat.NamedFunction(function=chat.FunctionName(name))
        case schema.AutoToolChoice() if has_tools:
            return "auto"
        case schema.NoToolChoice() if has_tools:
            return "none"
    return None


def one_call_only(choice: schema.MessagesToolChoice | None) -> bool:
    """Whether the model may use one tool at most."""
    return (
        choice is not None
        and not isinstance(choice, schema.NoToolChoice)
        and bool(choice.disable_parallel_tool_use)
    )
