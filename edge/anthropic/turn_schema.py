"""The turns of a Messages request, and the blocks of their content.

The docstrings are the descriptions in /openapi.json. Classes that derive from NotOffered are in
Anthropic's API but not in this one: they are decoded only to be refused with a precise error. Other
types of blocks are refused as unknown values of `type`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from contract.limits import MAX_MESSAGES, MAX_PARTS
from edge.openai.decoding.types import ABSENT, AnyJson, AnyObject, NotOffered, Strict, accepting

# Where a prefix ends that is to be cached. Prefixes are cached as the engine decides.
_CACHE: Final = "cache_control"


@accepting(_CACHE, "citations")
class TextBlock(Strict, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


# msgspec requires a tag only in a union. This type stands alone, so `type` is a normal parameter.
@accepting(_CACHE, "citations")
class OnlyTextBlock(Strict):
    """A piece of text, where blocks can only be text."""

    type: Literal["text"]
    text: str


class Base64Source(Strict, tag_field="type", tag="base64"):
    """An image as base64."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(NotOffered, tag_field="type", tag="url"):
    """An image at an address; not offered."""

    url: AnyJson = ABSENT


class FileSource(NotOffered, tag_field="type", tag="file"):
    """An uploaded image; not offered."""

    file_id: AnyJson = ABSENT


@accepting(_CACHE, "transformations")
class ImageBlock(Strict, tag_field="type", tag="image"):
    """An image."""

    source: Base64Source | UrlSource | FileSource


@accepting(_CACHE, "source", "title", "context", "citations")
class DocumentBlock(NotOffered, tag_field="type", tag="document"):
    """A document; not offered."""


@accepting(_CACHE, "source", "title", "content", "citations")
class SearchResultBlock(NotOffered, tag_field="type", tag="search_result"):
    """A search result; not offered."""


@accepting(_CACHE)
class ToolReferenceBlock(Strict, tag_field="type", tag="tool_reference"):
    """A tool that a search of tools has found. From here on the model sees it."""

    tool_name: str


_Blocks = Meta(max_length=MAX_PARTS)
ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


@accepting(_CACHE, "toolset_name")
class ToolResultBlock(Strict, tag_field="type", tag="tool_result"):
    """The result of a tool use of the turn before."""

    tool_use_id: str
    content: str | Annotated[list[ResultBlock], _Blocks] | None = None
    is_error: bool | None = None


@accepting("signature", _CACHE)
class ThinkingBlock(Strict, tag_field="type", tag="thinking"):
    """The model's reasoning. The signature is not checked."""

    thinking: str


@accepting("data", _CACHE)
class RedactedThinkingBlock(Strict, tag_field="type", tag="redacted_thinking"):
    """Reasoning that only Anthropic can read; it is left out."""


@accepting(_CACHE, "caller", "toolset_name")
class ToolUseBlock(Strict, tag_field="type", tag="tool_use"):
    """A call of a tool that the model made."""

    id: str
    name: str
    input: AnyObject


class ToolName(Strict, tag_field="type", tag="tool_reference"):
    """A tool of the request's `tools`."""

    name: str


class InlineTool(NotOffered, tag_field="type", tag="tool_definition"):
    """A tool that is defined where it is added; not offered."""

    definition: AnyJson = ABSENT


@accepting(_CACHE)
class ToolAdditionBlock(Strict, tag_field="type", tag="tool_addition"):
    """From here on the model sees this tool."""

    tool: ToolName | InlineTool


@accepting(_CACHE)
class ToolRemovalBlock(Strict, tag_field="type", tag="tool_removal"):
    """From here on the model does not see this tool."""

    tool: ToolName | InlineTool


UserBlock = TextBlock | ImageBlock | ToolResultBlock | DocumentBlock | SearchResultBlock
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
SystemBlock = TextBlock | ToolAdditionBlock | ToolRemovalBlock
TextBlocks = Annotated[list[OnlyTextBlock], _Blocks]


class UserTurn(Strict, tag_field="role", tag="user"):
    """A turn of the user: text, images, and results of tools."""

    content: str | Annotated[list[UserBlock], Meta(min_length=1, max_length=MAX_PARTS)]


class AssistantTurn(Strict, tag_field="role", tag="assistant"):
    """An earlier turn of the model. The model continues it if it is the last turn."""

    content: str | Annotated[list[AssistantBlock], _Blocks]


@accepting("output_config")
class SystemTurn(Strict, tag_field="role", tag="system"):
    """Instructions in the middle of a conversation."""

    content: str | Annotated[list[SystemBlock], _Blocks]
    clear_at: Literal["next_user_message", "never"] | None = None


Turn = UserTurn | AssistantTurn | SystemTurn
Turns = Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
