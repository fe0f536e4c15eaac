"""Converts a chat to vLLM's ChatCompletionRequest, for vLLM's renderer and parsers.

The service has already checked rules of any model: roles, and tool choices against the tools.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams
from vllm.sampling_params import StructuredOutputsParams

from contract.refusals import unsupported_by_model
from inference.engines.vllm_constraints import FORCED, parameters_text
from inference.engines.vllm_errors import invalid, refused
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2

_ROLES: Final = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_DEVELOPER: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}
# Names that vLLM passes to the tokenizer's apply_chat_template and not to the template itself.
_RESERVED_ARGUMENTS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class RenderableChat(ChatCompletionRequest):  # type: ignore[misc]
    """vLLM's request without its token limit; the engine's `prepare` compares the length."""

    def build_tok_params(self, model_config: Any) -> TokenizeParams:  # noqa: ARG002
        """vLLM's tokenization parameters, without truncation and check at the context's length."""
        return TokenizeParams(max_total_tokens=None, add_special_tokens=self.add_special_tokens)


def chat_request(
    chat: chat_pb2.ChatInput,
    *,
    structured_outputs: StructuredOutputsParams | None,
    skip_special_tokens: bool,
    cache_salt: str | None,
    takes_media: bool,
    calls_tools: bool,
) -> RenderableChat:
    """Translates a checked chat; raises InferenceError if the model does not support it.

    Args:
        chat: From the request.
        structured_outputs: The rule for the output's text.
        skip_special_tokens: Whether special tokens are left out of the text.
        cache_salt: Requests share vLLM's prefix cache only with requests of the same salt.
        takes_media, calls_tools: Whether the model takes images and audio, has a tool parser.
    """
    members: dict[str, Any] = {
        "messages": [_message(message, takes_media) for message in chat.messages],
        "stream": True,
        "skip_special_tokens": skip_special_tokens,
        "cache_salt": cache_salt,
        "add_generation_prompt": True,
        **_tools(chat, calls_tools),
    }
    for name in (
        "parallel_tool_calls",
        "reasoning_effort",
        "add_generation_prompt",
        "continue_final_message",
    ):
        if chat.HasField(name):
            members[name] = getattr(chat, name)
    if members.get("continue_final_message") and not chat.HasField("add_generation_prompt"):
        members["add_generation_prompt"] = False
    if chat.HasField("template_arguments_json"):
        members["chat_template_kwargs"] = _template_arguments(chat.template_arguments_json)
    if structured_outputs is not None:
        members["structured_outputs"] = structured_outputs
    try:
        request: RenderableChat = RenderableChat.model_validate(members)
    except VLLMValidationError as error:
        raise refused(error, "messages") from error
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "messages"
        raise refused(error, field) from error
    return request


def characters(chat: chat_pb2.ChatInput) -> int:
    """Characters of all fields that a chat template may render, used by this template or not."""
    count = sum(
        len(message.name)
        + len(message.tool_call_id)
        + len(message.reasoning)
        + sum(len(part.text) + len(part.refusal) for part in message.parts)
        + sum(len(call.id) + len(call.name) + len(call.arguments) for call in message.tool_calls)
        for message in chat.messages
    )
    if chat.tool_choice.mode == chat_pb2.ToolChoice.MODE_NONE:
        return count
    return count + sum(
        len(tool.name) + len(tool.description) + len(tool.parameters_json) for tool in chat.tools
    )


def _message(message: chat_pb2.ChatMessage, takes_media: bool) -> dict[str, Any]:
    content = _content(message, takes_media)
    rendered: dict[str, Any] = {"role": _ROLES[message.role], "content": content}
    for name in ("name", "tool_call_id", "reasoning"):
        if message.HasField(name):
            rendered[name] = getattr(message, name)
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return rendered


def _content(message: chat_pb2.ChatMessage, takes_media: bool) -> str | list[dict[str, Any]]:
    kinds = {part.WhichOneof("part") for part in message.parts}
    if kinds <= {"text", "refusal"}:
        # A string even for a message without content: many templates concatenate it.
        return "".join(part.text or part.refusal for part in message.parts)
    if "file" in kinds or not takes_media:
        raise InferenceError(
            "unsupported_value",
            "Invalid value for 'messages': this model takes no such content, only text"
            f"{', images and sounds' if takes_media else ''}.",
            param="messages",
        )
    return [_part(part) for part in message.parts]


def _part(part: chat_pb2.ContentPart) -> dict[str, Any]:
    kind = part.WhichOneof("part")
    if kind == "image":
        data = base64.b64encode(part.image.data).decode()
        image = {"url": f"data:{part.image.mime_type};base64,{data}"}
        if part.image.HasField("detail"):
            image["detail"] = part.image.detail
        return {"type": "image_url", "image_url": image}
    if kind == "audio":
        data = base64.b64encode(part.audio.data).decode()
        form = part.audio.mime_type.rpartition("/")[2]
        return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
    return {"type": "text", "text": part.text or part.refusal}


def _tools(chat: chat_pb2.ChatInput, calls_tools: bool) -> dict[str, Any]:
    choice = chat.tool_choice
    mode = choice.mode
    # The prompt leaves out tools that may not be called: small models would call them.
    if not chat.tools or mode == chat_pb2.ToolChoice.MODE_NONE:
        return {}
    if not calls_tools:
        raise InferenceError.of(unsupported_by_model("tools"))
    tools = [
        _tool(tool, index, forced=mode in FORCED)
        for index, tool in enumerate(chat.tools)
        if not choice.allowed_functions or tool.name in choice.allowed_functions
    ]
    if mode == chat_pb2.ToolChoice.MODE_FUNCTION:
        function = {"type": "function", "function": {"name": choice.function_name}}
        return {"tools": tools, "tool_choice": function}
    required = mode == chat_pb2.ToolChoice.MODE_REQUIRED
    return {"tools": tools, "tool_choice": "required" if required else "auto"}


def _tool(tool: chat_pb2.Tool, index: int, *, forced: bool) -> dict[str, Any]:
    parameters = json.loads(parameters_text(tool, index))
    function: dict[str, Any] = {"name": tool.name, "parameters": parameters}
    if tool.HasField("description"):
        function["description"] = tool.description
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    elif forced:
        # Otherwise vLLM allows any JSON value as the arguments of a forced call.
        function["strict"] = True
    return {"type": "function", "function": function}


def _template_arguments(text: str) -> dict[str, Any]:
    arguments = _json_object(text)
    if arguments is None:
        raise invalid("chat_template_kwargs", "it must be a JSON object.")
    if reserved := sorted(arguments.keys() & _RESERVED_ARGUMENTS):
        raise InferenceError(
            "unsupported_parameter",
            f"Unsupported parameter: 'chat_template_kwargs.{reserved[0]}' is not supported.",
            param=f"chat_template_kwargs.{reserved[0]}",
        )
    return arguments


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
