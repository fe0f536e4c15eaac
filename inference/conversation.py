"""The rules of a chat that do not depend on a model: messages, parts, tools, tool results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, get_args

import msgspec

from contract import refusals
from contract.limits import (
    MAX_ALL_PARTS,
    MAX_CHAT_IMAGE_BYTES,
    MAX_CHAT_IMAGES,
    MAX_MESSAGES,
    MAX_NAME_CHARACTERS,
    MAX_PARTS,
    MAX_SCHEMA_BYTES,
    MAX_TOOLS,
    ReasoningEffort,
)
from contract.tool_order import Turn, tool_order_fault
from inference.errors import InferenceError, check_length, check_string, invalid_value
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
    Role,
    Tool,
    ToolCall,
    ToolChoice,
)

# Characters of a message's `name` and of the names in earlier tool calls. No pattern restricts
# these names.
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
_EFFORTS: Final = get_args(ReasoningEffort)


def check_chat(chat: ChatInput) -> None:
    """Refuses a chat that breaks a rule of any model.

    Raises:
        InferenceError: With OpenAI's code and the path of the parameter.
    """
    # Copied once: protobuf makes new Python objects each time a repeated field is read.
    messages = chat.messages[:]
    if not messages:
        raise InferenceError.of(refusals.empty_array("messages"))
    if len(messages) > MAX_MESSAGES:
        raise InferenceError.of(refusals.array_too_long("messages", MAX_MESSAGES, len(messages)))
    contents = [(message.parts, message.tool_calls) for message in messages]
    if sum([len(parts) + len(calls) for parts, calls in contents]) > MAX_ALL_PARTS:
        raise InferenceError.of(refusals.too_many_parts())
    images = 0
    with_tools = False
    for index, (message, (parts, calls)) in enumerate(zip(messages, contents, strict=True)):
        images += _check_message(message, parts, calls, f"messages[{index}]")
        if calls or message.role == ROLE_TOOL:
            with_tools = True
    if images > MAX_CHAT_IMAGES:
        raise InferenceError.of(refusals.too_many_images())
    if with_tools and (fault := tool_order_fault(_turns(messages))):
        raise InferenceError.of(fault)
    if chat.tools or chat.HasField("tool_choice") or chat.HasField("parallel_tool_calls"):
        _check_tools(chat)
    if chat.HasField("reasoning_effort") and (effort := chat.reasoning_effort) not in _EFFORTS:
        value = f"'{refusals.shown(effort)}'"
        raise InferenceError.of(refusals.unknown_choice("reasoning_effort", value, _EFFORTS))
    if chat.HasField("template_arguments_json"):
        read_object(chat.template_arguments_json, "chat_template_kwargs")


def check_text_only(chat: ChatInput) -> None:
    """Refuses images, audio and files, for models that take text only.

    Raises:
        InferenceError: unsupported_value, with the path of the part.
    """
    for i, message in enumerate(chat.messages[:]):
        for j, part in enumerate(message.parts[:]):
            if part.WhichOneof("part") not in ("text", "refusal"):
                param = f"messages[{i}].content[{j}].type"
                explanation = "this model takes text only."
                raise InferenceError.of(refusals.unsupported_value(param, explanation))


def mentions_json(chat: ChatInput) -> bool:
    """Whether a message has the word "json", in any case: `json_object` output requires it."""
    return any("json" in part.text.lower() for message in chat.messages for part in message.parts)


def read_object(text: str, param: str) -> dict[str, object]:
    """Decodes a JSON object in a string.

    Args:
        text: At most MAX_SCHEMA_BYTES of UTF-8.
        param: The parameter that an error names.

    Raises:
        InferenceError: The text is too long, not JSON, nested too deep, or not an object.
    """
    data = text.encode()
    check_string(len(data), MAX_SCHEMA_BYTES, param)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise InferenceError.of(refusals.unusable_object(param)) from fault
    if not isinstance(value, dict):
        raise InferenceError.of(refusals.not_an_object(param))
    return value


def _check_message(
    message: ChatMessage, parts: Sequence[ContentPart], calls: Sequence[ToolCall], path: str
) -> int:
    """Checks one message, with its parts and tool calls, and returns its number of images."""
    role = message.role
    allowed = _PARTS_OF.get(role)
    if allowed is None:
        param = f"{path}.role"
        raise invalid_value(f"Invalid value for '{param}'.", param)
    content = f"{path}.content"
    if not parts and not calls:
        raise InferenceError.of(refusals.empty_array(content))
    if len(parts) > MAX_PARTS:
        raise InferenceError.of(refusals.array_too_long(content, MAX_PARTS, len(parts)))
    images = 0
    for position, part in enumerate(parts[:]):
        kind = part.WhichOneof("part")
        if kind not in allowed:
            param = f"{content}[{position}].type"
            raise invalid_value(f"Invalid value for '{param}'.", param)
        if kind == "image":
            images += 1
            _check_image(part.image, f"{content}[{position}].image_url.url")
    if message.name:
        _check_past_name(message.name, f"{path}.name")
    if calls:
        check_length(len(calls), MAX_TOOLS, f"{path}.tool_calls")
    for position, call in enumerate(calls[:]):
        _check_past_name(call.name, f"{path}.tool_calls[{position}].function.name")
    if role == ROLE_TOOL and not message.HasField("tool_call_id") and not message.name:
        raise InferenceError.of(refusals.missing_parameter(f"{path}.tool_call_id"))
    return images


def _check_past_name(name: str, param: str) -> None:
    check_string(len(name), MAX_PAST_NAME_CHARACTERS, param)


def _check_image(image: Media, param: str) -> None:
    check_string(len(image.data), MAX_CHAT_IMAGE_BYTES, param)
    if not image.data or image.mime_type not in _IMAGE_TYPES:
        raise invalid_value(
            f"Invalid '{param}'. Expected a picture in PNG, JPEG, WebP or GIF.", param
        )


def _turns(messages: Iterable[ChatMessage]) -> Iterator[Turn]:
    """The messages, without tool calls and tool messages that have no id.

    These have the legacy form `function_call` and are matched by the function's name.
    """
    for index, message in enumerate(messages):
        if message.role != ROLE_TOOL:
            yield index, None, [call.id for call in message.tool_calls if call.id]
        elif message.tool_call_id:
            yield index, message.tool_call_id, ()


def _check_tools(chat: ChatInput) -> None:
    check_length(len(chat.tools), MAX_TOOLS, "tools")
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
                raise InferenceError.of(refusals.only_with_tools(name))
    known = {tool.name for tool in chat.tools}
    named = [*choice.allowed_functions]
    if choice.mode == ToolChoice.MODE_FUNCTION:
        named.append(choice.function_name)
    for name in named:
        if name not in known:
            raise InferenceError.of(refusals.unknown_tool(name))


def _check_tool(tool: Tool, param: str) -> None:
    check_string(len(tool.name), MAX_NAME_CHARACTERS, f"{param}.name")
    if not _NAME.fullmatch(tool.name):
        raise InferenceError.of(refusals.invalid_name(f"{param}.name"))
    check_string(len(tool.description.encode()), MAX_SCHEMA_BYTES, f"{param}.description")
    if not tool.HasField("parameters_json"):
        return
    param = f"{param}.parameters"
    kind = read_object(tool.parameters_json, param).get("type", "object")
    if kind != "object":
        fault = refusals.wrong_root_type(kind)
        raise InferenceError.of(refusals.invalid_function(tool.name, fault, param))
