"""POST /v1/chat/completions: the request, from JSON to a GenerateRequest."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Final

from contract import refusals
from edge.openai import errors
from edge.openai.chat.messages import add_messages, mentions_json, read_messages
from edge.openai.chat.response import ChatOptions, ChatResponse
from edge.openai.chat.schema import ChatRequest
from edge.openai.chat.stream import ChatStream
from edge.openai.chat.tools import add_tools
from edge.openai.decoding.decoder import Schema, is_given
from edge.openai.errors import OpenAIError
from edge.openai.text.json_schema import read_object
from edge.openai.text.request import (
    ParsedText,
    check_request,
    generate_request,
    other_names,
    wants_running_usage,
    wants_usage,
)
from edge.openai.text.schema import JsonObjectFormat, JsonSchemaFormat
from isthmus.v1.chat_pb2 import ChatInput, ToolChoice
from isthmus.v1.generate_pb2 import GenerateRequest

_SCHEMA: Final[Schema[ChatRequest]] = Schema(ChatRequest)
_tool_parameters_of: Final = attrgetter(
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"
)
_NO_TOOLS: Final = (None,) * 5
# Modes in which the model must call a tool.
_FORCED_MODES: Final = (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_FUNCTION)
_JSON_FORMATS: Final = JsonObjectFormat | JsonSchemaFormat


def parse_chat_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedText:
    """Reads and checks a body. `ignore_unknown` drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    request.check_refused()
    message = chat_message(request, ignore_unknown=ignore_unknown)
    options = ChatOptions(
        model=request.model,
        n=request.n or 1,
        include_usage=wants_usage(request),
        running_usage=wants_running_usage(request),
        token_ids=bool(request.return_token_ids),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        legacy_functions=bool(request.functions),
        calls_forced=_calls_forced(message.chat),
        service_tier=request.service_tier is not None,
        metadata=request.metadata or None,
    )
    return ParsedText(
        model=request.model,
        stream=bool(request.stream),
        priority=request.priority,
        affinity=request.prompt_cache_key or request.session_id or "",
        requests=[message],
        other_names=_other_names(request),
        stream_translator=partial(ChatStream, options),
        document_translator=partial(ChatResponse, options),
    )


def chat_message(request: ChatRequest, *, ignore_unknown: bool = False) -> GenerateRequest:
    """The message for the inference service; other faces make a ChatRequest of their requests.

    Args:
        request: Its unsupported parameters are checked already.
        ignore_unknown: Drops unknown parameters of messages that are sent as text.

    Raises:
        OpenAIError: 400.
    """
    check_request(request)
    _check_chat(request)
    message = generate_request(request, request.max_completion_tokens or request.max_tokens)
    if request.logprobs:
        message.output.logprobs = request.top_logprobs or 0
    if request.echo:
        message.output.echo = True
    if request.include_reasoning is False:
        message.output.hide_reasoning = True
    chat = message.chat
    _fill_chat(request, chat, ignore_unknown=ignore_unknown)
    if _calls_forced(chat) and isinstance(request.response_format, _JSON_FORMATS):
        # As at OpenAI: it is about the text, and a forced call has none.
        message.ClearField("constraint")
    json_mode = isinstance(request.response_format, JsonObjectFormat)
    if json_mode and not mentions_json(chat.messages):
        raise OpenAIError.of(refusals.json_not_mentioned())
    return message


def _calls_forced(chat: ChatInput) -> bool:
    return chat.HasField("tool_choice") and chat.tool_choice.mode in _FORCED_MODES


def _check_chat(request: ChatRequest) -> None:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise errors.invalid_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
        )
    if request.top_logprobs and not request.logprobs:
        raise errors.invalid_request(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            "top_logprobs",
        )
    if request.modalities and "audio" in request.modalities:
        raise OpenAIError.of(refusals.unsupported_value("modalities", "'audio' is not supported."))
    if request.add_generation_prompt and request.continue_final_message:
        raise errors.invalid_request(
            "'add_generation_prompt' and 'continue_final_message' cannot both be true.",
            "continue_final_message",
        )


def _fill_chat(request: ChatRequest, chat: ChatInput, *, ignore_unknown: bool) -> None:
    add_messages(read_messages(request.messages, ignore_unknown=ignore_unknown), chat)
    if request.reasoning_effort is not None:
        chat.reasoning_effort = request.reasoning_effort
    if request.add_generation_prompt is not None:
        chat.add_generation_prompt = request.add_generation_prompt
    if request.continue_final_message is not None:
        chat.continue_final_message = request.continue_final_message
        # A prompt either continues the last message or opens a new turn, so the two fields have
        # opposite values.
        chat.add_generation_prompt = not request.continue_final_message
    if is_given(request.chat_template_kwargs):
        arguments = read_object(request.chat_template_kwargs, "chat_template_kwargs")
        if arguments.value:
            chat.template_arguments_json = arguments.text
    if _tool_parameters_of(request) != _NO_TOOLS:
        add_tools(request, chat)


def _other_names(request: ChatRequest) -> dict[str, str]:
    names = other_names(request)
    if request.functions:
        for i in range(len(request.functions)):
            names[f"tools[{i}].function"] = f"functions[{i}]"
        names |= {"tools": "functions", "tool_choice": "function_call"}
    return names
