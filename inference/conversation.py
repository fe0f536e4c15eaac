"""The rules of a chat that need no model: messages, their parts, tools and tool results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from contract import refusals as shared
from contract.limits import (
    MAX_ALL_PARTS,
    MAX_CHAT_IMAGE_BYTES,
    MAX_CHAT_IMAGES,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_SCHEMA_BYTES,
    MAX_TOOLS,
)
from contract.refusals import shown
from inference import refusals
from inference.errors import InferenceError
from inference.refusals import refused
from isthmus.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ChatInput,
    ChatMessage,
    Media,
    Role,
    Tool,
    ToolChoice,
)

# Characters of a tool's name, which must match _NAME.
MAX_NAME_CHARACTERS: Final = 64
# Characters of a message's `name` and of the names in earlier tool calls, which need match no
# pattern.
MAX_PAST_NAME_CHARACTERS: Final = 256

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
_IMAGE_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
_TEXT: Final = frozenset({"text"})
_PARTS_OF: Final[dict[Role, frozenset[str]]] = {
    ROLE_SYSTEM: _TEXT,
    ROLE_DEVELOPER: _TEXT,
    ROLE_USER: frozenset({"text", "image", "audio", "file"}),
    ROLE_ASSISTANT: frozenset({"text", "refusal"}),
    ROLE_TOOL: _TEXT,
}
# Values of reasoning_effort.
_EFFORTS: Final = ("high", "low", "max", "medium", "minimal", "none", "xhigh")


def check_chat(chat: ChatInput) -> None:
    """Refuses a chat that breaks a rule, whatever the model.

    Raises:
        InferenceError: Has OpenAI's code and the path of the parameter.
    """
    # Copied once: protobuf makes new Python objects each time a repeated field is read.
    messages = list(chat.messages)
    if not messages:
        raise refusals.empty_array("messages")
    refusals.check_length(len(messages), MAX_MESSAGES, "messages")
    if sum([len(message.parts) + len(message.tool_calls) for message in messages]) > MAX_ALL_PARTS:
        raise refused(shared.too_many_parts())
    images = 0
    for index, message in enumerate(messages):
        images += _check_message(message, f"messages[{index}]")
    if images > MAX_CHAT_IMAGES:
        raise refused(shared.too_many_chat_images())
    _check_tool_results(messages)
    if chat.tools or chat.HasField("tool_choice") or chat.HasField("parallel_tool_calls"):
        _check_tools(chat)
    if chat.HasField("reasoning_effort") and (effort := chat.reasoning_effort) not in _EFFORTS:
        supported = ", ".join(f"'{name}'" for name in _EFFORTS[:-1])
        raise refusals.invalid_value(
            f"Invalid value: '{shown(effort)}'. Supported values are: {supported}, and "
            f"'{_EFFORTS[-1]}'.",
            "reasoning_effort",
        )
    if chat.HasField("template_arguments_json"):
        read_object(chat.template_arguments_json, "chat_template_kwargs")


def check_text_only(chat: ChatInput) -> None:
    """Refuses images, audio and files, for models that take text only.

    Raises:
        InferenceError: The reason is unsupported_value; has the path of the part.
    """
    for i, message in enumerate(chat.messages):
        for j, part in enumerate(message.parts):
            if part.WhichOneof("part") not in ("text", "refusal"):
                raise refusals.unsupported_value(
                    f"messages[{i}].content[{j}].type", "this model takes text only."
                )


def mentions_json(chat: ChatInput) -> bool:
    """Whether a message has the word "json", in any case: `json_object` output requires it."""
    return any("json" in part.text.lower() for message in chat.messages for part in message.parts)


def read_object(text: str, param: str) -> dict[str, object]:
    """Decodes a JSON object in a string.

    Args:
        text: At most MAX_SCHEMA_BYTES of UTF-8.
        param: The parameter to name in an error.

    Raises:
        InferenceError: The text is too long, not JSON, nested too deep, or not an object.
    """
    data = text.encode()
    refusals.check_string(len(data), MAX_SCHEMA_BYTES, param)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise refused(shared.not_an_object(param)) from fault
    if not isinstance(value, dict):
        raise InferenceError(
            "invalid_type", f"Invalid type for '{param}': expected an object.", param=param
        )
    return value


def _check_message(message: ChatMessage, path: str) -> int:
    """Checks one message and returns its number of images."""
    role, parts, calls = message.role, message.parts, message.tool_calls
    allowed = _PARTS_OF.get(role)
    if allowed is None:
        param = f"{path}.role"
        raise refusals.invalid_value(f"Invalid value for '{param}'.", param)
    content = f"{path}.content"
    if not parts and not calls:
        raise refusals.empty_array(content)
    refusals.check_length(len(parts), MAX_PARTS, content)
    refusals.check_length(len(calls), MAX_TOOLS, f"{path}.tool_calls")
    images = 0
    for position, part in enumerate(parts):
        kind = part.WhichOneof("part")
        if kind not in allowed:
            param = f"{content}[{position}].type"
            raise refusals.invalid_value(f"Invalid value for '{param}'.", param)
        if kind == "image":
            images += 1
            _check_image(part.image, f"{content}[{position}].image_url.url")
    _check_past_name(message.name, f"{path}.name")
    for position, call in enumerate(calls):
        _check_past_name(call.name, f"{path}.tool_calls[{position}].function.name")
    if role == ROLE_TOOL and not message.HasField("tool_call_id") and not message.name:
        raise refusals.missing(f"{path}.tool_call_id")
    return images


def _check_past_name(name: str, param: str) -> None:
    refusals.check_string(len(name), MAX_PAST_NAME_CHARACTERS, param)


def _check_image(image: Media, param: str) -> None:
    refusals.check_string(len(image.data), MAX_CHAT_IMAGE_BYTES, param)
    if not image.data or image.mime_type not in _IMAGE_TYPES:
        raise refusals.invalid_value(
            f"Invalid '{param}'. Expected a picture in PNG, JPEG, WebP or GIF.", param
        )


def _check_tool_results(messages: Iterable[ChatMessage]) -> None:
    """Checks that tool messages follow the tool calls they belong to, and that none is missing.

    Calls and tool messages without an id are of the older form `function_call`; they are matched by
    the function's name and not checked here.
    """
    calls: frozenset[str] = frozenset()
    unanswered: dict[str, None] = {}
    for index, message in enumerate(messages):
        if message.role == ROLE_TOOL:
            if message.tool_call_id and message.tool_call_id not in calls:
                raise refused(shared.stray_tool_message(index))
            unanswered.pop(message.tool_call_id, None)
            continue
        if unanswered:
            break
        ids = [call.id for call in message.tool_calls if call.id]
        calls, unanswered = frozenset(ids), dict.fromkeys(ids)
    if unanswered:
        raise refused(shared.unanswered_tool_calls(unanswered))


def _check_tools(chat: ChatInput) -> None:
    refusals.check_length(len(chat.tools), MAX_TOOLS, "tools")
    for index, tool in enumerate(chat.tools):
        _check_tool(tool, f"tools[{index}].function")
    choice = chat.tool_choice
    if not chat.tools:
        chosen = choice.mode != ToolChoice.MODE_UNSPECIFIED
        for name, given in (
            ("parallel_tool_calls", chat.HasField("parallel_tool_calls")),
            ("tool_choice", chosen),
        ):
            if given:
                raise refusals.broken_rule(
                    f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are "
                    "specified.",
                    name,
                )
    known = {tool.name for tool in chat.tools}
    named = [*choice.allowed_functions]
    if choice.mode == ToolChoice.MODE_FUNCTION:
        named.append(choice.function_name)
    for name in named:
        if name not in known:
            raise refusals.broken_rule(
                f"Invalid value for 'tool_choice': '{shown(name)}' is not one of 'tools'.",
                "tool_choice",
            )


def _check_tool(tool: Tool, param: str) -> None:
    refusals.check_string(len(tool.name), MAX_NAME_CHARACTERS, f"{param}.name")
    if not _NAME.fullmatch(tool.name):
        raise refusals.invalid_value(
            f"Invalid '{param}.name': string does not match pattern. Expected a string that "
            "matches the pattern '^[a-zA-Z0-9_-]+$'.",
            f"{param}.name",
        )
    refusals.check_string(len(tool.description.encode()), MAX_SCHEMA_BYTES, f"{param}.description")
    if not tool.HasField("parameters_json"):
        return
    param = f"{param}.parameters"
    kind = read_object(tool.parameters_json, param).get("type", "object")
    if kind != "object":
        named = shown(kind) if isinstance(kind, str) else "None"
        raise InferenceError(
            "invalid_function_parameters",
            f"Invalid schema for function '{tool.name}': schema must be a JSON Schema of "
            f"'type: \"object\"', got 'type: \"{named}\"'.",
            param=param,
        )
