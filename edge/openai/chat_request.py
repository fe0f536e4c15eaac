"""Chat completions: OpenAI's request to the contract's."""

from __future__ import annotations

from typing import Final

from edge.openai import errors
from edge.openai.chat_schema import ChatRequest
from edge.openai.decode import Schema
from edge.openai.generation import check_request, generate_request
from edge.openai.json_schema import is_given, read_object
from edge.openai.messages import add_messages, mentions_json, read_messages
from edge.openai.refusals import GENERATION, Refusals
from edge.openai.schema import JsonObjectFormat
from edge.openai.tools import add_tools
from isthmus.v1.chat_pb2 import ChatInput
from isthmus.v1.generate_pb2 import GenerateRequest

_SCHEMA: Final[Schema[ChatRequest]] = Schema(ChatRequest)

REFUSALS: Final = Refusals(
    {
        **GENERATION,
        "audio": frozenset[bytes](),
        "prediction": frozenset[bytes](),
        "web_search_options": frozenset[bytes](),
        "moderation": frozenset[bytes](),
        "chat_template": frozenset[bytes](),
        "documents": frozenset({b"[]"}),
        "add_special_tokens": frozenset({b"false"}),
        "echo": frozenset({b"false"}),
        "include_reasoning": frozenset({b"true"}),
        "return_prompt_text": frozenset({b"false"}),
        "mm_processor_kwargs": frozenset[bytes](),
        "media_io_kwargs": frozenset[bytes](),
    }
)


def read_chat_request(body: bytes, *, ignore_unknown: bool) -> tuple[ChatRequest, GenerateRequest]:
    """The body as OpenAI's members and as the contract's message.

    Raises:
        OpenAIError: 400.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    REFUSALS.check(request)
    check_request(request)
    _check_chat(request)
    message = generate_request(request, request.max_completion_tokens or request.max_tokens)
    if request.logprobs:
        message.output.logprobs = request.top_logprobs or 0
    _fill_chat(request, message.chat, ignore_unknown=ignore_unknown)
    json_mode = isinstance(request.response_format, JsonObjectFormat)
    if json_mode and not mentions_json(message.chat.messages):
        raise errors.invalid_request(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object'.",
            "messages",
        )
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
        raise errors.unsupported_value("modalities", "'audio' is not supported.")
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
        # A turn is either continued or opened, whichever of the two members came.
        chat.add_generation_prompt = not request.continue_final_message
    if is_given(request.chat_template_kwargs):
        arguments = read_object(request.chat_template_kwargs, "chat_template_kwargs")
        chat.template_arguments_json = arguments.text
    add_tools(request, chat)
