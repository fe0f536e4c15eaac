"""The tools of a response, and which of them the model may call.

Tools of other types are OpenAI's own (web search and the like) or of a newer API. Clients send
them to every server, so they are accepted and the model does not see them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from contract.limits import MAX_TOOLS
from edge.openai.decoding.types import ABSENT, Name, NullableObject, Strict, accepting

_Tools = Meta(max_length=MAX_TOOLS)
# When a tool is shown and who may call it. Here the model sees every tool at once, and calls it.
_advice: Final = accepting(
    "allowed_callers", "async", "cache_control", "defer_loading", "output_schema"
)


@_advice
class ResponseFunction(Strict, tag_field="type", tag="function"):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: NullableObject = ABSENT
    strict: bool | None = None


class FreeText(Strict, tag_field="type", tag="text"):
    """Any text."""


class GrammarText(Strict, tag_field="type", tag="grammar"):
    """A text that obeys a grammar."""

    syntax: Literal["lark", "regex"]
    definition: str


@_advice
class ResponseCustomTool(Strict, tag_field="type", tag="custom"):
    """A tool whose input is one text."""

    name: Name
    description: str | None = None
    format: FreeText | GrammarText | None = None


class NamespaceTool(Strict, tag_field="type", tag="namespace"):
    """A group of functions and custom tools; a call of one has the group's name as `namespace`."""

    name: Name
    tools: Annotated[list[ResponseFunction | ResponseCustomTool], _Tools]
    description: str | None = None


OfferedTool = ResponseFunction | ResponseCustomTool | NamespaceTool


class ChosenFunction(Strict, tag_field="type", tag="function"):
    """A function that the model must call."""

    name: str


class ChosenCustomTool(Strict, tag_field="type", tag="custom"):
    """A custom tool that the model must call."""

    name: str


class AllowedTool(Struct, kw_only=True, gc=False, omit_defaults=True):
    """One of `tools`; a namespace stands for all of its tools. Other types have other members."""

    type: str
    name: str | None = None
    namespace: str | None = None


class AllowedResponseTools(Strict, tag_field="type", tag="allowed_tools"):
    """The tools that the model may call, or must call if the mode is `required`."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


ResponseToolChoice = (
    Literal["none", "auto", "required"] | ChosenFunction | ChosenCustomTool | AllowedResponseTools
)
