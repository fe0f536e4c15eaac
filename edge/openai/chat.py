"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct

from edge.openai.chat_request import read_chat_request
from edge.openai.chat_response import ChatAnswer, ChatOptions
from edge.openai.chat_schema import ChatRequest
from edge.openai.chat_stream import ChatStream
from edge.openai.generation import other_names, wants_usage
from edge.openai.translator import AnswerTranslator, Identity, StreamTranslator
from isthmus.v1.chat_pb2 import ToolChoice
from isthmus.v1.generate_pb2 import GenerateRequest

_FORCED = (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_FUNCTION)


class ChatCall(Struct, frozen=True, gc=False):
    """A checked chat request.

    Attributes:
        model: The name asked for, echoed in the answer.
        stream: Whether the answer is an event stream.
        priority: Lower runs sooner; None where the request does not say.
        requests: One.
        other_names: The service's names of members, with those that the caller used.
    """

    model: str
    stream: bool
    priority: int | None
    requests: list[GenerateRequest]
    other_names: Mapping[str, str]
    options: ChatOptions

    def open_stream(self, identity: Identity) -> StreamTranslator:
        """A translator for an event stream."""
        return ChatStream(self.options, identity)

    def open_answer(self, identity: Identity) -> AnswerTranslator:
        """A translator for one document."""
        return ChatAnswer(self.options, identity)


def parse_chat_request(body: bytes, *, ignore_unknown: bool = False) -> ChatCall:
    """Reads a request.

    Args:
        body: The HTTP body.
        ignore_unknown: Drops members that nobody knows instead of refusing them.

    Raises:
        OpenAIError: 400.
    """
    request, message = read_chat_request(body, ignore_unknown=ignore_unknown)
    return ChatCall(
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
    return message.chat.tool_choice.mode in _FORCED


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
