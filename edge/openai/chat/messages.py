"""Converts the messages of a chat request to the contract's ChatInput."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from contract import refusals
from contract.limits import MAX_ALL_PARTS, MAX_CHAT_IMAGE_BYTES, MAX_CHAT_IMAGES
from contract.tool_order import Turn, tool_order_fault
from edge.openai import errors
from edge.openai.chat import message_schema as schema
from edge.openai.decoding.decoder import Schema, check_syntax, is_given
from edge.openai.errors import OpenAIError
from isthmus.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ChatInput,
    ChatMessage,
    ContentPart,
    Media,
)

# Images must be data: URLs; other URLs are not fetched.
_IMAGE: Final = re.compile(r"data:(image/(?:png|jpeg|jpg|webp|gif));base64,", re.IGNORECASE)
# `role` to the contract's role; a legacy function message is the result of a tool call.
_ROLES: Final = {
    "user": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "system": ROLE_SYSTEM,
    "developer": ROLE_DEVELOPER,
    "tool": ROLE_TOOL,
    "function": ROLE_TOOL,
}
# Messages that can call tools, or have a result.
_OF_TOOLS: Final = (schema.AssistantMessage, schema.ToolMessage)
_MESSAGES: Final[Schema[list[schema.Message]]] = Schema(schema.Messages)


def read_messages(
    messages: str | Sequence[schema.Message], *, ignore_unknown: bool
) -> Sequence[schema.Message]:
    """The list of messages, parsed if `messages` is a string.

    A string that begins with `[` or `{` must be the JSON of a list of messages; `ignore_unknown`
    drops unknown parameters in it. Any other string is the content of one user message.

    Raises:
        OpenAIError: 400.
    """
    if not isinstance(messages, str):
        return messages
    text = messages.strip()
    if not text:
        raise errors.invalid_request(
            "Invalid 'messages': empty string. Expected messages.", "messages", "invalid_value"
        )
    if text[0] not in "[{":
        return [schema.UserMessage(content=messages)]
    try:
        check_syntax(text)
    except OpenAIError as fault:
        raise errors.invalid_request(
            "Invalid 'messages': the text begins like JSON and is not valid JSON.",
            "messages",
            "invalid_value",
        ) from fault
    if text[0] == "{":
        raise errors.invalid_request(
            "Invalid type for 'messages': expected an array of objects, but got an object instead.",
            "messages",
            "invalid_type",
        )
    return _MESSAGES.decode(text, ignore_unknown=ignore_unknown, at="messages")


def add_messages(messages: Sequence[schema.Message], chat: ChatInput) -> None:
    """Converts the messages and adds them to `chat`.

    Raises:
        OpenAIError: 400, the content or the order of the messages is not allowed.
    """
    _check_part_count(messages)
    for message in messages:
        if isinstance(message, _OF_TOOLS):
            if fault := tool_order_fault(_turns(messages)):
                raise OpenAIError.of(fault)
            break
    conversation = _Conversation(messages)
    converted = chat.messages
    for i, message in enumerate(messages):
        conversation.convert(i, message, converted.add())


def mentions_json(messages: Iterable[ChatMessage]) -> bool:
    """Whether the text of any message contains the word "json", as JSON mode requires."""
    return any("json" in part.text.lower() for message in messages for part in message.parts)


def _check_part_count(messages: Iterable[schema.Message]) -> None:
    count = 0
    for message in messages:
        content = message.content
        count += 1 if isinstance(content, str) else len(content or ())
        if isinstance(message, schema.AssistantMessage):
            count += len(message.tool_calls or ())
    if count > MAX_ALL_PARTS:
        raise OpenAIError.of(refusals.too_many_parts())


def _turns(messages: Sequence[schema.Message]) -> Iterator[Turn]:
    for i, message in enumerate(messages):
        if isinstance(message, schema.ToolMessage):
            yield i, message.tool_call_id, ()
        elif isinstance(message, schema.AssistantMessage) and message.tool_calls:
            yield i, None, [call.id for call in message.tool_calls]
        else:
            yield i, None, ()


def _unsupported_type(param: str, explanation: str) -> OpenAIError:
    return OpenAIError.of(refusals.unsupported_value(f"{param}.type", explanation))


class _Conversation:
    """Converts messages in order and keeps the state that later messages depend on."""

    def __init__(self, messages: Sequence[schema.Message]) -> None:
        self._messages = messages
        self._images = 0
        # Id of the previous message's legacy function call; "" if it has none.
        self._function_call_id = ""

    def convert(self, i: int, message: schema.Message, out: ChatMessage) -> None:
        out.role = _ROLES[str(message.__struct_config__.tag)]
        if isinstance(message, schema.AssistantMessage):
            self._convert_assistant(i, message, out)
        elif isinstance(message, schema.FunctionMessage):
            self._add_parts(i, message.content or "", out)
            if self._function_call_id:
                out.tool_call_id = self._function_call_id
        else:
            self._function_call_id = ""
            self._add_parts(i, message.content, out)
            if isinstance(message, schema.ToolMessage):
                out.tool_call_id = message.tool_call_id
        if message.name is not None:
            out.name = message.name

    def _convert_assistant(
        self, i: int, message: schema.AssistantMessage, out: ChatMessage
    ) -> None:
        self._function_call_id = ""
        if is_given(message.audio):
            raise OpenAIError.of(refusals.unsupported_parameter(f"messages[{i}].audio"))
        for j, call in enumerate(message.tool_calls or []):
            if isinstance(call, schema.CustomToolCall):
                raise _unsupported_type(
                    f"messages[{i}].tool_calls[{j}]", "custom tools are not supported."
                )
            out.tool_calls.add(
                id=call.id, name=call.function.name, arguments=call.function.arguments
            )
        if message.function_call is not None:
            # Legacy function calls have no ids and need no result. The contract requires a result
            # for each call with an id, so a call gets an id only if its result is the next message.
            following = next(iter(self._messages[i + 1 : i + 2]), None)
            self._function_call_id = (
                f"call_{i}" if isinstance(following, schema.FunctionMessage) else ""
            )
            out.tool_calls.add(
                id=self._function_call_id,
                name=message.function_call.name,
                arguments=message.function_call.arguments,
            )
        if reasoning := message.reasoning_content or message.reasoning:
            out.reasoning = reasoning
        # An empty list of parts is the same as none.
        content = None if message.content == [] else message.content
        if content is None and reasoning and not (out.tool_calls or message.refusal):
            # Servers send null if the tokens ended within the reasoning.
            content = ""
        if content is not None or not (out.tool_calls or message.refusal):
            self._add_parts(i, content, out)
        if message.refusal:
            out.parts.add().refusal = message.refusal

    def _add_parts(
        self, i: int, content: str | Sequence[schema.AnyPart] | None, out: ChatMessage
    ) -> None:
        if content is None:
            raise errors.invalid_request(
                "Invalid value for 'content': expected a string, got null.",
                f"messages.[{i}].content",
            )
        if isinstance(content, str):
            out.parts.add().text = content
            return
        for j, part in enumerate(content):
            self._fill_part(part, f"messages[{i}].content[{j}]", out.parts.add())

    def _fill_part(self, part: schema.AnyPart, param: str, out: ContentPart) -> None:
        match part:
            case schema.TextPart(text=text) | schema.OnlyTextPart(text=text):
                out.text = text
            case schema.RefusalPart(refusal=refusal):
                out.refusal = refusal
            case schema.ImagePart(image_url=image):
                self._images += 1
                if self._images > MAX_CHAT_IMAGES:
                    raise OpenAIError.of(refusals.too_many_images())
                out.image.CopyFrom(_image_media(image, f"{param}.image_url.url"))
            case schema.AudioPart():
                raise _unsupported_type(param, "audio input is not supported.")
            case schema.FilePart():
                raise _unsupported_type(param, "file input is not supported.")


def _image_media(image: schema.ImageUrl, param: str) -> Media:
    """Decodes a data: URL; `param` is its path. The inference service checks the bytes."""
    if image.url[:5].lower() != "data:":
        explanation = "pictures are taken as data: URLs only; addresses are not fetched."
        raise OpenAIError.of(refusals.unsupported_value(param, explanation))
    head = _IMAGE.match(image.url)
    if head is None:
        raise _invalid_image_url(param)
    encoded = image.url[head.end() :]
    if len(encoded) > (MAX_CHAT_IMAGE_BYTES + 2) // 3 * 4:
        raise OpenAIError.of(refusals.string_too_long(param, MAX_CHAT_IMAGE_BYTES // 3 * 4))
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as fault:
        raise _invalid_image_url(param) from fault
    if not data:
        raise _invalid_image_url(param)
    return Media(data=data, mime_type=head[1].lower().replace("jpg", "jpeg"), detail=image.detail)


def _invalid_image_url(param: str) -> OpenAIError:
    return errors.invalid_request(
        f"Invalid '{param}'. Expected a base64-encoded data URL with an image MIME type (e.g. "
        "'data:image/png;base64,iVBORw0KGgo...').",
        param,
        "invalid_value",
    )
