"""Converts the system prompt and the turns of a Messages request to the messages of a chat.

  Messages                            chat
  ----------------------------------  ------------------------------------------------------------
  system                              a `system` message
  user turn                           a `tool` message for each tool_result, then a `user` message
                                      with the images of the results and all other blocks
  assistant turn                      an `assistant` message; thinking becomes its reasoning
  system turn                         a `system` message

Turns of one role that follow each other are one turn, as in Anthropic's API, with an empty line
between their texts.

Each chat message remembers where it comes from, so that errors name the client's members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from contract import refusals
from contract.limits import MAX_TOOLS
from edge.anthropic import turn_schema as schema
from edge.anthropic.turn_groups import (
    SYSTEM,
    Group,
    Place,
    blocks_of,
    check_results,
    groups_of,
    path,
)
from edge.openai import errors
from edge.openai.chat import message_schema as chat
from edge.openai.errors import OpenAIError

# Claude Code's first line. It changes with each request, which would end the cached prefix there.
_BILLING: Final = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")
# The prefix of a tool result with `is_error`.
_FAILED: Final = "Error: "


class Origin(NamedTuple):
    """The place that a chat message comes from.

    Attributes:
        place: Its first turn; of a `tool` message the tool_result.
        parts: The place of each part of its content; a turn's own if the turn is a text.
        calls: The place of each tool call.
    """

    place: Place
    parts: Sequence[Place] = ()
    calls: Sequence[Place] = ()


class Conversation:
    """The chat's messages.

    Attributes:
        messages: The messages.
        origins: One for each message.
        prefilled: Whether the model continues the last message.
    """

    def __init__(
        self, system: str | Sequence[schema.OnlyTextBlock] | None, turns: Sequence[schema.Turn]
    ) -> None:
        """Converts them.

        Raises:
            OpenAIError: 400, in the client's terms.
        """
        self.messages: list[chat.Message] = []
        self.origins: list[Origin] = []
        groups = list(groups_of(turns))
        check_results(groups)
        if system is not None:
            self._add_system(system, SYSTEM)
        last_user = max(
            (i for i, t in enumerate(turns) if isinstance(t, schema.UserTurn)), default=0
        )
        for group in groups:
            if isinstance(group[0][1], schema.UserTurn):
                self._add_user(group)
            elif isinstance(group[0][1], schema.AssistantTurn):
                self._add_assistant(group)
            else:
                for i, turn in group:
                    if isinstance(turn, schema.SystemTurn) and (
                        turn.clear_at != "next_user_message" or i > last_user
                    ):
                        self._add_system(turn.content, i)
        if not self.messages:
            raise errors.invalid_request(
                "Invalid 'messages': no turn has content.", "messages", "invalid_value"
            )
        self.prefilled = isinstance(turns[-1], schema.AssistantTurn)

    def _add(self, message: chat.Message, origin: Origin) -> None:
        self.messages.append(message)
        self.origins.append(origin)

    def _add_system(
        self, content: str | Sequence[schema.SystemBlock | schema.OnlyTextBlock], turn: int
    ) -> None:
        if isinstance(content, str):
            if (text := _without_billing(content)) is not None:
                self._add(chat.SystemMessage(content=text), Origin((turn,)))
            return
        parts, places = [], []
        for j, block in enumerate(content):
            if not isinstance(block, schema.TextBlock | schema.OnlyTextBlock):
                continue
            if (text := _without_billing(block.text)) is not None:
                parts.append(chat.OnlyTextPart(type="text", text=text))
                places.append((turn, j))
        if parts:
            self._add(chat.SystemMessage(content=parts), Origin((turn,), places))

    def _add_user(self, group: Group) -> None:
        first, turn = group[0]
        if len(group) == 1 and isinstance(turn.content, str):
            self._add(chat.UserMessage(content=turn.content), Origin((first,)))
            return
        parts: list[chat.UserPart] = []
        places: list[Place] = []
        for place, block in blocks_of(group):
            if isinstance(block, schema.ToolResultBlock):
                pictures = self._add_result(block, place)
                parts += (part for _, part in pictures)
                places += (inner for inner, _ in pictures)
        for place, block in blocks_of(group):
            match block:
                case schema.TextBlock(text=text):
                    parts.append(_text(text, place, places))
                case schema.ImageBlock():
                    parts.append(_image(block, place))
                case schema.DocumentBlock() | schema.SearchResultBlock():
                    raise _not_offered(block, place)
                case _:
                    continue
            places.append(place)
        if parts:
            self._add(chat.UserMessage(content=parts), Origin((first,), places))

    def _add_result(
        self, block: schema.ToolResultBlock, place: Place
    ) -> list[tuple[Place, chat.ImagePart]]:
        """Adds the text of a result; returns its images, each with its place."""
        content = block.content or ""
        texts, pictures = [], []
        for k, inner in enumerate(
            [schema.TextBlock(content)] if isinstance(content, str) else content
        ):
            at = (*place, k)
            match inner:
                case schema.TextBlock(text=text) | schema.ToolReferenceBlock(tool_name=text):
                    texts.append(text)
                case schema.ImageBlock():
                    pictures.append((at, _image(inner, at)))
                case _:
                    raise _not_offered(inner, at)
        text = (_FAILED if block.is_error else "") + "\n".join(texts)
        message = chat.ToolMessage(content=text, tool_call_id=block.tool_use_id)
        self._add(message, Origin(place))
        return pictures

    def _add_assistant(self, group: Group) -> None:
        first, turn = group[0]
        if len(group) == 1 and isinstance(turn.content, str):
            self._add(chat.AssistantMessage(content=turn.content), Origin((first,)))
            return
        parts: list[chat.TextPart | chat.RefusalPart] = []
        calls: list[chat.FunctionToolCall | chat.CustomToolCall] = []
        reasoning: list[str] = []
        part_places: list[Place] = []
        call_places: list[Place] = []
        for place, block in blocks_of(group):
            match block:
                case schema.TextBlock(text=text):
                    parts.append(_text(text, place, part_places))
                    part_places.append(place)
                case schema.ThinkingBlock(thinking=text):
                    reasoning.append(text)
                case schema.ToolUseBlock():
                    if len(calls) == MAX_TOOLS:
                        raise errors.too_many_calls(path(place))
                    calls.append(_call(block, f"{path(place)}.input"))
                    call_places.append(place)
        message = chat.AssistantMessage(
            content=parts or (None if calls else ""),
            tool_calls=calls or None,
            reasoning_content="".join(reasoning) or None,
        )
        self._add(message, Origin((first,), part_places, call_places))


def _text(text: str, place: Place, before: Sequence[Place]) -> chat.TextPart:
    """The part of a text; `before` are the places of those before it in the message."""
    other_turn = bool(before) and before[-1][0] != place[0]
    return chat.TextPart(text=f"\n\n{text}" if other_turn and text else text)


def _without_billing(text: str) -> str | None:
    """The text without a billing line at its beginning; None if it has no other."""
    billing = _BILLING.match(text)
    return text if billing is None else text[billing.end() :] or None


def _image(block: schema.ImageBlock, place: Place) -> chat.ImagePart:
    match block.source:
        case schema.Base64Source(media_type=media_type, data=data):
            return chat.ImagePart(chat.ImageUrl(f"data:{media_type};base64,{data}"))
    explanation = "images are taken as 'base64' only; addresses and files are not fetched."
    raise OpenAIError.of(refusals.unsupported_value(f"{path(place)}.source.type", explanation))


def _not_offered(
    block: schema.DocumentBlock | schema.SearchResultBlock, place: Place
) -> OpenAIError:
    kind = block.__struct_config__.tag
    explanation = f"'{kind}' blocks are not supported; send their text in a 'text' block."
    return OpenAIError.of(refusals.unsupported_value(f"{path(place)}.type", explanation))


def _call(block: schema.ToolUseBlock, at: str) -> chat.FunctionToolCall:
    arguments = bytes(block.input)
    if not arguments.startswith(b"{"):
        raise OpenAIError.of(refusals.not_an_object(at))
    function = chat.PastFunctionCall(name=block.name, arguments=arguments.decode())
    return chat.FunctionToolCall(id=block.id, function=function)


def names_of(origins: Sequence[Origin]) -> Iterator[tuple[str, str]]:
    """The places within the chat's messages, each with the client's; longer names come first."""
    for k, origin in enumerate(origins):
        ours, theirs = f"messages[{k}]", path(origin.place)
        turn, *blocks = origin.place
        if blocks:
            yield f"{ours}.tool_call_id", f"{theirs}.tool_use_id"
            yield ours, theirs
            continue
        content = "system" if turn == SYSTEM else f"{theirs}.content"
        for t, place in enumerate(origin.parts):
            block = path(place) if place[1:] else f"{path(place)}.content"
            yield f"{ours}.content[{t}].image_url.url", f"{block}.source.data"
            yield f"{ours}.content[{t}]", block
        for t, place in enumerate(origin.calls):
            yield f"{ours}.tool_calls[{t}].function.arguments", f"{path(place)}.input"
            yield f"{ours}.tool_calls[{t}].function", path(place)
            yield f"{ours}.tool_calls[{t}]", path(place)
        yield f"{ours}.content", content
        yield ours, theirs
