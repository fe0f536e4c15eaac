"""POST /v1/messages and its count_tokens: from JSON to a GenerateRequest, by way of a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Final

from edge.anthropic import schema
from edge.anthropic.response import MessageOptions, MessageResponse
from edge.anthropic.stream import MessageStream
from edge.anthropic.tools import chat_choice, chat_tool, one_call_only, shown_tools
from edge.anthropic.turns import Conversation, Origin, names_of
from edge.openai import errors
from edge.openai.chat.request import chat_message
from edge.openai.chat.schema import ChatRequest
from edge.openai.decoding.decoder import Schema
from edge.openai.errors import OpenAIError
from edge.openai.text.request import ParsedText
from edge.openai.text.schema import JsonSchema, JsonSchemaFormat
from isthmus.v1.generate_pb2 import GenerateRequest

_MESSAGES: Final[Schema[schema.MessagesRequest]] = Schema(schema.MessagesRequest)
_COUNT: Final[Schema[schema.CountTokensRequest]] = Schema(schema.CountTokensRequest)
# Members that have the same meaning in a chat.
_SAME: Final = ("stream", "temperature", "top_p", "top_k")
_same_of: Final = attrgetter(*_SAME)
# Tokens of a budget of thinking from which the effort is medium, and high.
_MEDIUM_BUDGET: Final = 5_000
_HIGH_BUDGET: Final = 10_000


class _Names(Mapping[str, str]):
    """The chat's names of parameters, each with the client's; made when an error needs them."""

    def __init__(self, make: Callable[[], dict[str, str]]) -> None:
        self._make = make

    @cached_property
    def _names(self) -> dict[str, str]:
        return self._make()

    def __getitem__(self, name: str) -> str:
        return self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def parse_messages_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedText:
    """Reads and checks a body. `ignore_unknown` drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    request = _MESSAGES.decode(body, ignore_unknown=ignore_unknown)
    message, names = _message(request)
    options = MessageOptions(model=request.model, max_tokens=request.max_tokens)
    return ParsedText(
        model=request.model,
        stream=bool(request.stream),
        priority=None,
        affinity="",
        requests=[message],
        other_names=names,
        stream_translator=partial(MessageStream, options),
        document_translator=partial(MessageResponse, options),
    )


def parse_count_tokens_request(
    body: bytes, *, ignore_unknown: bool = False
) -> tuple[GenerateRequest, Mapping[str, str]]:
    """Reads and checks a body of count_tokens.

    Returns:
        The request whose prompt is to be counted, and the client's names of its parameters.

    Raises:
        OpenAIError: 400.
    """
    return _message(_COUNT.decode(body, ignore_unknown=ignore_unknown))


def _message(request: schema.CountTokensRequest) -> tuple[GenerateRequest, Mapping[str, str]]:
    """The message for the inference service, and the client's names of its parameters."""
    request.check_refused()
    conversation = Conversation(request.system, request.messages)
    tools = shown_tools(request.tools or (), request.messages)
    names = _Names(
        partial(
            _names_of,
            conversation.origins,
            [i for i, _ in tools],
            "output_format" if _config(request).format is None else "output_config.format",
        )
    )
    members: dict[str, Any] = {
        "model": request.model,
        "messages": conversation.messages,
        **_thinking(request),
    }
    if tools or request.tool_choice is not None:
        members["tools"] = [chat_tool(tool) for _, tool in tools] or None
        members["tool_choice"] = chat_choice(request.tool_choice, has_tools=bool(tools))
        if tools and one_call_only(request.tool_choice):
            members["parallel_tool_calls"] = False
    if conversation.prefilled:
        members["continue_final_message"] = True
    if _config(request).format and request.output_format:
        raise errors.invalid_request(
            "'output_config.format' and 'output_format' cannot be given at the same time.",
            "output_format",
        )
    if form := _config(request).format or request.output_format:
        wrapped = JsonSchema(name="output", schema=form.schema)
        members["response_format"] = JsonSchemaFormat(json_schema=wrapped)
    if isinstance(request, schema.MessagesRequest):
        _check_budget(request)
        members |= zip(_SAME, _same_of(request), strict=True)
        members["max_completion_tokens"] = request.max_tokens
        members["stop"] = request.stop_sequences
    try:
        message = chat_message(ChatRequest(**members))
    except OpenAIError as error:
        raise error.in_terms_of(names) from None
    if isinstance(request, schema.MessagesRequest):
        # Anthropic also allows a `max_tokens` above what the prompt leaves of the context.
        message.stopping.cut_to_context = True
    for (_, tool), made in zip(tools, message.chat.tools, strict=True):
        if tool.strict is not None:
            made.strict = tool.strict
    return message, names


def _config(request: schema.CountTokensRequest) -> schema.OutputConfig:
    return request.output_config or schema.OutputConfig()


def _check_budget(request: schema.MessagesRequest) -> None:
    match request.thinking:
        case schema.ThinkingEnabled(budget_tokens=budget) if budget >= request.max_tokens:
            raise errors.invalid_request(
                "Invalid 'max_tokens': it must be greater than 'thinking.budget_tokens'.",
                "max_tokens",
            )


def _thinking(request: schema.CountTokensRequest) -> dict[str, Any]:
    """The chat's members about reasoning. Templates take an effort, so a budget becomes one."""
    effort: str | None = _config(request).effort
    match request.thinking:
        case schema.ThinkingDisabled():
            return {"reasoning_effort": "none", "include_reasoning": False}
        case schema.ThinkingEnabled(budget_tokens=budget) if effort is None:
            high = "high" if budget >= _HIGH_BUDGET else "medium"
            effort = high if budget >= _MEDIUM_BUDGET else "low"
    members: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if request.thinking is not None and request.thinking.display == "omitted":
        members["include_reasoning"] = False
    return members


def _names_of(origins: list[Origin], tools: list[int], form: str) -> dict[str, str]:
    names = dict(names_of(origins))
    for k, i in enumerate(tools):
        names[f"tools[{k}].function.parameters"] = f"tools[{i}].input_schema"
        names[f"tools[{k}].function"] = f"tools[{i}]"
        names[f"tools[{k}]"] = f"tools[{i}]"
    return names | {
        "max_completion_tokens": "max_tokens",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "response_format.json_schema.schema": f"{form}.schema",
        "response_format": form,
        "reasoning_effort": "output_config.effort",
        "stop": "stop_sequences",
    }
