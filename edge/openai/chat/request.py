"""POST /v1/chat/completions: the request, from JSON to a GenerateRequest."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Final

from msgspec import UNSET, Struct

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
    check_request,
    generate_request,
    other_names,
    wants_usage,
)
from edge.openai.text.schema import JsonObjectFormat
from edge.openai.text.translator import Identity
from isthmus.v1.chat_pb2 import ChatInput, ToolChoice
from isthmus.v1.generate_pb2 import GenerateRequest

_SCHEMA: Final[Schema[ChatRequest]] = Schema(ChatRequest)

_tool_parameters_of: Final = attrgetter(
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"
)
_NO_TOOLS: Final = (UNSET,) * 5


def read_chat_request(body: bytes, *, ignore_unknown: bool) -> tuple[ChatRequest, GenerateRequest]:
    """Decodes and checks a body; returns its parameters and the call they become.

    Raises:
        OpenAIError: 400.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    request.check_refused()
    check_request(request)
    _check_chat(request)
    message = generate_request(request, request.max_completion_tokens or request.max_tokens)
    if request.logprobs:
        message.output.logprobs = request.top_logprobs or 0
    _fill_chat(request, message.chat, ignore_unknown=ignore_unknown)
    json_mode = isinstance(request.response_format, JsonObjectFormat)
    if json_mode and not mentions_json(message.chat.messages):
        raise OpenAIError.of(refusals.json_not_mentioned())
    return request, message


def _check_chat(request: ChatRequest) -> None:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise errors.invalid_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
        )
    if request.top_logprobs is not None and not request.logprobs:
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
        # A prompt either continues the last message or opens a new turn, so this parameter
        # decides the other field.
        chat.add_generation_prompt = not request.continue_final_message
    if is_given(request.chat_template_kwargs):
        arguments = read_object(request.chat_template_kwargs, "chat_template_kwargs")
        chat.template_arguments_json = arguments.text
    if _tool_parameters_of(request) != _NO_TOOLS:
        add_tools(request, chat)


# Modes in which the model must call a tool.
_FORCED_MODES: Final = (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_FUNCTION)


class ParsedChat(Struct, frozen=True, gc=False):
    """A checked chat request.

    Attributes:
        model: The requested name, which the response echoes.
        stream: Whether the response is an event stream.
        priority: Lower runs sooner; None if the request has none.
        requests: The one call to the inference service.
        other_names: Parameter names of the service, each with the name that the client used, for
            errors.
        options: How to write the response.
    """

    model: str
    stream: bool
    priority: int | None
    requests: list[GenerateRequest]
    other_names: Mapping[str, str]
    options: ChatOptions

    def stream_translator(self, identity: Identity) -> ChatStream:
        return ChatStream(self.options, identity)

    def document_translator(self, identity: Identity) -> ChatResponse:
        return ChatResponse(self.options, identity)


def parse_chat_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedChat:
    """Reads and checks a request.

    Args:
        body: The HTTP body.
        ignore_unknown: Drops unknown parameters instead of refusing them.

    Raises:
        OpenAIError: 400.
    """
    request, message = read_chat_request(body, ignore_unknown=ignore_unknown)
    return ParsedChat(
        model=request.model,
        stream=bool(request.stream),
        priority=request.priority,
        requests=[message],
        other_names=_other_names(request),
        options=_options(request, message),
    )


def _other_names(request: ChatRequest) -> dict[str, str]:
    names = other_names(request)
    if request.functions is not UNSET:
        for i in range(len(request.functions)):
            names[f"tools[{i}].function"] = f"functions[{i}]"
        names |= {"tools": "functions", "tool_choice": "function_call"}
    return names


def _calls_forced(request: ChatRequest, message: GenerateRequest) -> bool:
    if request.tool_choice is UNSET and request.function_call is UNSET:
        return False
    return message.chat.tool_choice.mode in _FORCED_MODES


def _options(request: ChatRequest, message: GenerateRequest) -> ChatOptions:
    return ChatOptions(
        model=request.model,
        n=request.n or 1,
        include_usage=wants_usage(request),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        legacy_functions=request.functions is not UNSET,
        calls_forced=_calls_forced(request, message),
        service_tier=request.service_tier is not None,
        metadata=request.metadata,
    )
