"""POST /v1/responses: the request, from JSON to a GenerateRequest.

The request becomes a ChatRequest, from which the code of chats makes the message. Its errors name
the chat's parameters, so they get the names of this request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final

from msgspec import Raw

from contract import refusals
from contract.parameters import PARAMETERS
from contract.refusals import shown
from edge.openai import errors
from edge.openai.chat.request import chat_message
from edge.openai.chat.schema import ChatRequest
from edge.openai.decoding.decoder import Schema, is_given
from edge.openai.decoding.types import ABSENT, AnyJson, extended
from edge.openai.errors import OpenAIError
from edge.openai.responses.conversation import Conversation
from edge.openai.responses.input import read_input
from edge.openai.responses.output_schema import ReasoningOptions, Response
from edge.openai.responses.response import ResponseDocument, ResponseOptions
from edge.openai.responses.schema import (
    LOGPROBS,
    InputTokensRequest,
    NamedSchemaFormat,
    ReasoningConfig,
    ResponsesRequest,
    TextConfig,
)
from edge.openai.responses.stored import Store, keeper
from edge.openai.responses.stream import ResponseStream
from edge.openai.responses.tools import Tools, choice_in_chat, read_tools
from edge.openai.text.request import ParsedText
from edge.openai.text.schema import JsonSchema, JsonSchemaFormat, ResponseFormat, TextFormat

# The entries of both lists are decoded one by one: the type of an item may be left out, and tools
# of unknown types have unknown members.
_UNREAD: Final = ("input", "tools")
_REQUEST: Final = extended(ResponsesRequest, [(name, AnyJson, ABSENT) for name in _UNREAD])
_SCHEMA: Final[Schema[ResponsesRequest]] = Schema(_REQUEST)
_COUNTED: Final[Schema[InputTokensRequest]] = Schema(
    extended(InputTokensRequest, [(name, AnyJson, ABSENT) for name in _UNREAD])
)
_COUNTED_MEMBERS: Final = tuple(
    name for name in InputTokensRequest.__struct_fields__ if name not in InputTokensRequest.harmless
)
_NAMES: Final = [parameter.name for parameter in PARAMETERS]
_values_of: Final = attrgetter(*_NAMES)
# Parameters of a chat, and their names in a request of the Responses API.
_OTHER_NAMES: Final = {
    "response_format.json_schema": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}


def parse_responses_request(
    body: bytes, *, ignore_unknown: bool = False, store: Store | None = None
) -> ParsedText:
    """Reads and checks a body.

    Args:
        body: The JSON.
        ignore_unknown: Drops unknown parameters instead of refusing them.
        store: The kept responses of the request's key; None if none are kept.

    Raises:
        OpenAIError: 400; 404, an item that is referred to is not kept.
    """
    request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    return _parsed(request, ignore_unknown=ignore_unknown, store=store)


def parse_input_tokens_request(
    body: bytes, *, ignore_unknown: bool = False, store: Store | None = None
) -> ParsedText:
    """Reads and checks a request for a count; takes and raises the same as above."""
    counted = _COUNTED.decode(body, ignore_unknown=ignore_unknown)
    counted.check_refused()
    request = _REQUEST(**{name: getattr(counted, name) for name in _COUNTED_MEMBERS})
    return _parsed(request, ignore_unknown=ignore_unknown, store=store)


def _parsed(request: ResponsesRequest, *, ignore_unknown: bool, store: Store | None) -> ParsedText:
    _check(request)
    given_input, given_tools = _unread(request)
    if given_input is None:
        raise OpenAIError.of(refusals.missing_parameter("input"))
    tools = (
        Tools() if given_tools is None else read_tools(given_tools, ignore_unknown=ignore_unknown)
    )
    given = read_input(
        given_input,
        ignore_unknown=ignore_unknown,
        store=store,
        before=_earlier_items(request.previous_response_id, store),
    )
    conversation = Conversation(request.instructions, given.items, tools, given.earlier)
    names = _other_names(tools, conversation)
    try:
        message = chat_message(_chat_request(request, conversation, tools))
    except OpenAIError as error:
        raise error.in_terms_of(names) from None
    kept = store if request.store else None
    options = ResponseOptions(
        model=request.model,
        blank=_blank(request, tools, stored=kept is not None),
        tools=tools,
        top_logprobs=_top_logprobs(request),
        keep=None if kept is None else keeper(kept, given.texts),
    )
    return ParsedText(
        model=request.model,
        stream=bool(request.stream),
        priority=request.priority,
        affinity=request.prompt_cache_key or request.session_id or "",
        requests=[message],
        other_names=names,
        stream_translator=partial(ResponseStream, options),
        document_translator=partial(ResponseDocument, options),
    )


def _earlier_items(response_id: str | None, store: Store | None) -> Sequence[bytes]:
    """The items of an earlier response and of all before it."""
    if response_id is None:
        return ()
    if store is None:
        raise OpenAIError.of(refusals.unsupported_parameter("previous_response_id"))
    kept = store.response(response_id)
    if kept is None:
        raise errors.invalid_request(
            f"Previous response with id '{shown(response_id)}' not found.",
            "previous_response_id",
            "previous_response_not_found",
        )
    return kept.items


def _unread(request: ResponsesRequest) -> list[Raw | None]:
    """The texts of `input` and `tools`; None where it is absent or null."""
    values: list[AnyJson] = [getattr(request, name) for name in _UNREAD]
    return [value if is_given(value) else None for value in values]


def _check(request: ResponsesRequest) -> None:
    request.check_refused()
    if request.structured_outputs is not None:
        request.structured_outputs.check_refused("structured_outputs.")
    if request.reasoning is not None:
        request.reasoning.check_refused("reasoning.")
    if request.prompt_cache_options is not None:
        request.prompt_cache_options.check_refused("prompt_cache_options.")
    if request.truncation == "auto":
        explanation = "'auto' is not supported; the input is never cut."
        raise OpenAIError.of(refusals.unsupported_value("truncation", explanation))


def _other_names(tools: Tools, conversation: Conversation) -> Mapping[str, str]:
    """Names of the chat's parameters, each with its name here; the longest come first."""
    places = [*tools.places, *conversation.places]
    places.sort(key=lambda place: len(place[0]), reverse=True)
    return dict(places) | _OTHER_NAMES


def _chat_request(
    request: ResponsesRequest, conversation: Conversation, tools: Tools
) -> ChatRequest:
    top_logprobs = _top_logprobs(request)
    has_tools = bool(tools.in_chat)
    return ChatRequest(
        **_parameters(request),
        model=request.model,
        messages=conversation.messages,
        stream=request.stream,
        max_completion_tokens=request.max_output_tokens,
        stop=request.stop,
        logit_bias=request.logit_bias,
        logprobs=top_logprobs is not None,
        top_logprobs=top_logprobs,
        tools=[*tools.in_chat] if has_tools else None,
        tool_choice=choice_in_chat(request.tool_choice, tools),
        parallel_tool_calls=request.parallel_tool_calls if has_tools else None,
        response_format=_format_in_chat(request.text),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        structured_outputs=request.structured_outputs,
        chat_template_kwargs=request.chat_template_kwargs,
        include_reasoning=request.include_reasoning,
    )


def _parameters(request: ResponsesRequest) -> dict[str, Any]:
    """The values of the contract's parameters."""
    return dict(zip(_NAMES, _values_of(request), strict=True))


def _top_logprobs(request: ResponsesRequest) -> int | None:
    """The alternatives of each token; None if no log probabilities are wanted."""
    if request.top_logprobs or (request.include is not None and LOGPROBS in request.include):
        return request.top_logprobs or 0
    return None


def _format_in_chat(text: TextConfig | None) -> ResponseFormat | None:
    match text.format if text is not None else None:
        case NamedSchemaFormat() as named:
            schema = JsonSchema(name=named.name, schema=named.schema, strict=named.strict)
            return JsonSchemaFormat(json_schema=schema)
        case other:
            return other


def _blank(request: ResponsesRequest, tools: Tools, *, stored: bool) -> Response:
    """The response before it begins."""
    text = request.text or TextConfig()
    reasoning = request.reasoning or ReasoningConfig()
    parameters = _parameters(request)
    return Response(
        id="",
        created_at=0,
        status="in_progress",
        completed_at=None,
        error=None,
        incomplete_details=None,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        metadata=request.metadata or {},
        model=request.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        store=stored,
        prompt_cache_key=request.prompt_cache_key,
        prompt_cache_retention=request.prompt_cache_retention,
        reasoning=ReasoningOptions(
            reasoning.effort, reasoning.summary or reasoning.generate_summary
        ),
        safety_identifier=request.safety_identifier,
        temperature=_given(parameters["temperature"], 1.0),
        top_p=_given(parameters["top_p"], 1.0),
        presence_penalty=_given(parameters["presence_penalty"], 0.0),
        frequency_penalty=_given(parameters["frequency_penalty"], 0.0),
        text=TextConfig(format=text.format or TextFormat(), verbosity=text.verbosity),
        tool_choice=request.tool_choice or "auto",
        tools=tools.shown,
        top_logprobs=request.top_logprobs or 0,
        usage=None,
        user=request.user,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
