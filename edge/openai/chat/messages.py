"""The messages of a chat request, converted to the contract's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from edge.openai import errors
from edge.openai.chat.media import MAX_IMAGES, image_media
from edge.openai.chat.schema import (
    MAX_ALL_PARTS,
    AnyPart,
    AssistantMessage,
    AudioPart,
    CustomToolCall,
    DeveloperMessage,
    FilePart,
    FunctionMessage,
    ImagePart,
    Message,
    Messages,
    OnlyTextPart,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from edge.openai.decoding.decoder import Schema, check_syntax
from edge.openai.errors import OpenAIError
from edge.openai.text.json_schema import is_given
from isthmus.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ChatInput,
    ChatMessage,
    ContentPart,
    Role,
)

_PlainMessage = UserMessage | SystemMessage | DeveloperMessage | ToolMessage
_MESSAGES: Final[Schema[list[Message]]] = Schema(Messages)


def read_messages(messages: str | Sequence[Message], *, ignore_unknown: bool) -> Sequence[Message]:
    """The list of messages, parsed if `messages` is a string.

    A string that begins with `[` or `{` must be the JSON of a list of messages. Any other string
    is the content of one user message.

    Args:
        messages: The parameter `messages`.
        ignore_unknown: Drops unknown parameters in that JSON instead of refusing them.

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
        return [UserMessage(content=messages)]
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


def add_messages(messages: Sequence[Message], chat: ChatInput) -> None:
    """Converts the messages and adds them to `chat`.

    Raises:
        OpenAIError: 400, the content or the order of the messages is not allowed.
    """
    _check_part_count(messages)
    _check_tool_order(messages)
    conversation = _Conversation(messages)
    converted = chat.messages
    for i, message in enumerate(messages):
        conversation.convert(i, message, converted.add())


def mentions_json(messages: Iterable[ChatMessage]) -> bool:
    """Whether the text of any message contains the word "json", as JSON mode requires."""
    return any("json" in part.text.lower() for message in messages for part in message.parts)


def _check_part_count(messages: Iterable[Message]) -> None:
    if sum(map(_part_count, messages)) > MAX_ALL_PARTS:
        raise errors.invalid_request(
            "Invalid 'messages': too many content parts and tool calls. "
            f"At most {MAX_ALL_PARTS} are allowed.",
            "messages",
            "array_above_max_length",
        )


def _part_count(message: Message) -> int:
    count = 1 if isinstance(message.content, str) else len(message.content or ())
    if isinstance(message, AssistantMessage):
        count += len(message.tool_calls or ())
    return count


def _check_tool_order(messages: Sequence[Message]) -> None:
    """Checks that the tool messages after an assistant message fit its tool calls.

    Each call must have a tool message, and each tool message must refer to one of those calls.
    """
    calls: frozenset[str] = frozenset()
    # Ids of calls without a tool message yet; a dict keeps their order.
    unanswered: dict[str, None] = {}
    for i, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in calls:
                raise errors.invalid_request(
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                    f"messages.[{i}].role",
                )
            unanswered.pop(message.tool_call_id, None)
            continue
        if unanswered:
            break
        calls = frozenset()
        if isinstance(message, AssistantMessage) and message.tool_calls:
            unanswered = dict.fromkeys(call.id for call in message.tool_calls)
            calls = frozenset(unanswered)
    if unanswered:
        ids = errors.shown(", ".join(list(unanswered)[:8]), 256)
        raise errors.invalid_request(
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            f"{ids}",
            "messages",
        )


class _Conversation:
    """Converts messages in order and keeps the state that later messages depend on."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self._images = 0
        # Id of the legacy function call in the message before; "" if it made none.
        self._function_call_id = ""

    def convert(self, i: int, message: Message, out: ChatMessage) -> None:
        if not isinstance(message, FunctionMessage):
            self._function_call_id = ""
        match message:
            case UserMessage():
                self._convert_plain(i, message, ROLE_USER, out)
            case AssistantMessage():
                self._convert_assistant(i, message, out)
            case SystemMessage():
                self._convert_plain(i, message, ROLE_SYSTEM, out)
            case DeveloperMessage():
                self._convert_plain(i, message, ROLE_DEVELOPER, out)
            case ToolMessage():
                self._convert_plain(i, message, ROLE_TOOL, out)
                out.tool_call_id = message.tool_call_id
            case FunctionMessage():
                out.role = ROLE_TOOL
                self._add_parts(i, message.content or "", out)
                out.name = message.name
                if self._function_call_id:
                    out.tool_call_id = self._function_call_id

    def _convert_plain(self, i: int, message: _PlainMessage, role: Role, out: ChatMessage) -> None:
        out.role = role
        self._add_parts(i, message.content, out)
        if message.name is not None:
            out.name = message.name

    def _convert_assistant(self, i: int, message: AssistantMessage, out: ChatMessage) -> None:
        out.role = ROLE_ASSISTANT
        if is_given(message.audio):
            raise errors.unsupported_parameter(f"messages[{i}].audio")
        for j, call in enumerate(message.tool_calls or []):
            if isinstance(call, CustomToolCall):
                raise errors.unsupported_value(
                    f"messages[{i}].tool_calls[{j}].type", "custom tools are not supported."
                )
            out.tool_calls.add(
                id=call.id, name=call.function.name, arguments=call.function.arguments
            )
        if message.function_call is not None:
            # Legacy function calls have no ids and need no result. The contract requires a result
            # for each call with an id, so a call gets an id only if its result is the next message.
            following = next(iter(self._messages[i + 1 : i + 2]), None)
            self._function_call_id = f"call_{i}" if isinstance(following, FunctionMessage) else ""
            out.tool_calls.add(
                id=self._function_call_id,
                name=message.function_call.name,
                arguments=message.function_call.arguments,
            )
        if message.content is not None or not (out.tool_calls or message.refusal):
            self._add_parts(i, message.content, out)
        if message.refusal:
            out.parts.add().refusal = message.refusal
        if message.name is not None:
            out.name = message.name
        if reasoning := message.reasoning_content or message.reasoning:
            out.reasoning = reasoning

    def _add_parts(self, i: int, content: str | Sequence[AnyPart] | None, out: ChatMessage) -> None:
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

    def _fill_part(self, part: AnyPart, param: str, out: ContentPart) -> None:
        match part:
            case TextPart(text=text) | OnlyTextPart(text=text):
                out.text = text
            case RefusalPart(refusal=refusal):
                out.refusal = refusal
            case ImagePart(image_url=image):
                self._images += 1
                if self._images > MAX_IMAGES:
                    raise errors.invalid_request(
                        f"Invalid 'messages': too many pictures. At most {MAX_IMAGES} are allowed.",
                        "messages",
                        "invalid_value",
                    )
                out.image.CopyFrom(image_media(image, f"{param}.image_url"))
            case AudioPart():
                raise errors.unsupported_value(f"{param}.type", "audio input is not supported.")
            case FilePart():
                raise errors.unsupported_value(f"{param}.type", "file input is not supported.")
