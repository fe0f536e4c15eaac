"""Converts the system prompt and the turns of a Messages request to the messages of a chat.

  Messages                            chat
  ----------------------------------  ------------------------------------------------------------
  system                              a `system` message
  user turn                           a `tool` message for each tool_result, then a `user` message
                                      with the images of the results and all other blocks
  assistant turn                      an `assistant` message; thinking becomes its reasoning
  system turn                         a `system` message

Each chat message remembers where it comes from, so that errors name the client's members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from contract import refusals
from contract.refusals import shown
from edge.anthropic import turn_schema as schema
from edge.openai import errors
from edge.openai.chat import message_schema as chat
from edge.openai.errors import OpenAIError

# Claude Code's first line. It changes with each request, which would end the cached prefix there.
_BILLING: Final = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")
# What the text of a failed tool's result begins with.
_FAILED: Final = "Error: "
# The index of the turn that stands for `system`.
SYSTEM: Final = -1


class Origin(NamedTuple):
    """The place that a chat message comes from.

    Attributes:
        turn: Index in `messages`, or SYSTEM.
        parts: For each part of its content the index of the block, or of the tool_result and of
            the block within it.
        calls: For each tool call the index of the block.
        result: Index of the tool_result of a `tool` message; else -1.
    """

    turn: int
    parts: tuple[int | tuple[int, int], ...] = ()
    calls: tuple[int, ...] = ()
    result: int = -1


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
        _check_results(turns)
        if system is not None:
            self._add_system(system, SYSTEM)
        users = [i for i, turn in enumerate(turns) if isinstance(turn, schema.UserTurn)]
        for i, turn in enumerate(turns):
            match turn:
                case schema.UserTurn():
                    self._add_user(turn, i)
                case schema.AssistantTurn():
                    self._add_assistant(turn, i)
                case schema.SystemTurn(content=content, clear_at=clear_at):
                    if clear_at != "next_user_message" or i > max(users, default=0):
                        self._add_system(content, i)
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
                self._add(chat.SystemMessage(content=text), Origin(turn))
            return
        parts, places = [], []
        for j, block in enumerate(content):
            if not isinstance(block, schema.TextBlock | schema.OnlyTextBlock):
                continue
            if (text := _without_billing(block.text)) is not None:
                parts.append(chat.OnlyTextPart(type="text", text=text))
                places.append(j)
        if parts:
            self._add(chat.SystemMessage(content=parts), Origin(turn, tuple(places)))

    def _add_user(self, turn: schema.UserTurn, i: int) -> None:
        if isinstance(turn.content, str):
            self._add(chat.UserMessage(content=turn.content), Origin(i))
            return
        parts: list[chat.UserPart] = []
        places: list[int | tuple[int, int]] = []
        for j, block in enumerate(turn.content):
            if isinstance(block, schema.ToolResultBlock):
                pictures = self._add_result(block, i, j)
                parts += (part for _, part in pictures)
                places += ((j, k) for k, _ in pictures)
        for j, block in enumerate(turn.content):
            match block:
                case schema.ToolResultBlock():
                    continue
                case schema.TextBlock(text=text):
                    parts.append(chat.TextPart(text=text))
                case schema.ImageBlock():
                    parts.append(_image(block, f"messages[{i}].content[{j}]"))
                case _:
                    raise _not_offered(block, f"messages[{i}].content[{j}]")
            places.append(j)
        if parts:
            self._add(chat.UserMessage(content=parts), Origin(i, tuple(places)))

    def _add_result(
        self, block: schema.ToolResultBlock, i: int, j: int
    ) -> list[tuple[int, chat.ImagePart]]:
        """Adds the text of a result; returns its images, each with its index in the result."""
        content = block.content or ""
        texts, pictures = [], []
        for k, inner in enumerate(
            [schema.TextBlock(content)] if isinstance(content, str) else content
        ):
            at = f"messages[{i}].content[{j}].content[{k}]"
            match inner:
                case schema.TextBlock(text=text) | schema.ToolReferenceBlock(tool_name=text):
                    texts.append(text)
                case schema.ImageBlock():
                    pictures.append((k, _image(inner, at)))
                case _:
                    raise _not_offered(inner, at)
        text = (_FAILED if block.is_error else "") + "\n".join(texts)
        message = chat.ToolMessage(content=text, tool_call_id=block.tool_use_id)
        self._add(message, Origin(i, result=j))
        return pictures

    def _add_assistant(self, turn: schema.AssistantTurn, i: int) -> None:
        if isinstance(turn.content, str):
            self._add(chat.AssistantMessage(content=turn.content), Origin(i))
            return
        parts: list[chat.TextPart | chat.RefusalPart] = []
        calls: list[chat.FunctionToolCall | chat.CustomToolCall] = []
        reasoning: list[str] = []
        part_places, call_places = [], []
        for j, block in enumerate(turn.content):
            match block:
                case schema.TextBlock(text=text):
                    parts.append(chat.TextPart(text=text))
                    part_places.append(j)
                case schema.ThinkingBlock(thinking=text):
                    reasoning.append(text)
                case schema.ToolUseBlock():
                    calls.append(_call(block, f"messages[{i}].content[{j}].input"))
                    call_places.append(j)
        message = chat.AssistantMessage(
            content=parts or (None if calls else ""),
            tool_calls=calls or None,
            reasoning_content="".join(reasoning) or None,
        )
        self._add(message, Origin(i, tuple(part_places), tuple(call_places)))


def _without_billing(text: str) -> str | None:
    """The text without a billing line at its beginning; None if it has no other."""
    billing = _BILLING.match(text)
    return text if billing is None else text[billing.end() :] or None


def _image(block: schema.ImageBlock, at: str) -> chat.ImagePart:
    match block.source:
        case schema.Base64Source(media_type=media_type, data=data):
            return chat.ImagePart(chat.ImageUrl(f"data:{media_type};base64,{data}"))
    explanation = "images are taken as 'base64' only; addresses and files are not fetched."
    raise OpenAIError.of(refusals.unsupported_value(f"{at}.source.type", explanation))


def _not_offered(block: schema.DocumentBlock | schema.SearchResultBlock, at: str) -> OpenAIError:
    kind = block.__struct_config__.tag
    explanation = f"'{kind}' blocks are not supported; send their text in a 'text' block."
    return OpenAIError.of(refusals.unsupported_value(f"{at}.type", explanation))


def _call(block: schema.ToolUseBlock, at: str) -> chat.FunctionToolCall:
    arguments = bytes(block.input)
    if not arguments.startswith(b"{"):
        raise OpenAIError.of(refusals.not_an_object(at))
    function = chat.PastFunctionCall(name=block.name, arguments=arguments.decode())
    return chat.FunctionToolCall(id=block.id, function=function)


def _check_results(turns: Sequence[schema.Turn]) -> None:
    """Refuses a tool_use without a result in the next turn, and a result of no such tool_use."""
    used: dict[str, None] = {}
    for i, turn in enumerate(turns):
        blocks = () if isinstance(turn.content, str) else turn.content
        missing = dict(used)
        for j, block in enumerate(blocks):
            if isinstance(block, schema.ToolResultBlock):
                if block.tool_use_id not in used:
                    raise _no_such_use(block.tool_use_id, f"messages[{i}].content[{j}].tool_use_id")
                missing.pop(block.tool_use_id, None)
        if missing:
            raise _no_result(missing, i - 1)
        used = dict.fromkeys(b.id for b in blocks if isinstance(b, schema.ToolUseBlock))
    if used:
        raise _no_result(used, len(turns) - 1)


def _no_such_use(name: str, at: str) -> OpenAIError:
    return errors.invalid_request(
        f"Invalid '{at}': the turn before has no 'tool_use' block with the id '{shown(name)}'.",
        at,
        "invalid_value",
    )


def _no_result(missing: dict[str, None], i: int) -> OpenAIError:
    ids = shown(", ".join(list(missing)[:8]), 256)
    return errors.invalid_request(
        f"Invalid 'messages[{i}]': the next turn must have a 'tool_result' block for each "
        f"'tool_use' block. These ids have none: {ids}",
        f"messages[{i}]",
        "invalid_value",
    )


def names_of(origins: Sequence[Origin]) -> Iterator[tuple[str, str]]:
    """The places within the chat's messages, each with the client's; longer names come first."""
    for k, origin in enumerate(origins):
        ours = f"messages[{k}]"
        theirs = "system" if origin.turn == SYSTEM else f"messages[{origin.turn}]"
        content = "system" if origin.turn == SYSTEM else f"{theirs}.content"
        if origin.result >= 0:
            block = f"{content}[{origin.result}]"
            yield f"{ours}.tool_call_id", f"{block}.tool_use_id"
            yield ours, block
            continue
        for t, place in enumerate(origin.parts):
            j, *inner = place if isinstance(place, tuple) else (place,)
            block = f"{content}[{j}]" + "".join(f".content[{n}]" for n in inner)
            yield f"{ours}.content[{t}].image_url.url", f"{block}.source.data"
            yield f"{ours}.content[{t}]", block
        for t, j in enumerate(origin.calls):
            yield f"{ours}.tool_calls[{t}].function.arguments", f"{content}[{j}].input"
            yield f"{ours}.tool_calls[{t}].function", f"{content}[{j}]"
            yield f"{ours}.tool_calls[{t}]", f"{content}[{j}]"
        yield f"{ours}.content", content
        yield ours, theirs
