"""POST /tokenize and POST /detokenize, and the counts of other endpoints' prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from contract.refusals import not_a_chat_model
from contract.token_refusals import not_a_text_model
from edge.anthropic.request import parse_count_tokens_request
from edge.anthropic.response import TokenCount
from edge.exchange import runner
from edge.exchange.json_response import json_response
from edge.exchange.machine import Exchange
from edge.handlers.request import call_options, read_body
from edge.handlers.responses import referred_responses
from edge.openai.errors import OpenAIError
from edge.openai.responses.output_schema import InputTokens
from edge.openai.responses.request import parse_input_tokens_request
from edge.openai.tokens.request import parse_detokenization, parse_tokenization
from edge.openai.tokens.response import TokensResponse, detokenization, tokenization
from edge.state import EdgeRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import ModelKind
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse

_Parsed = TypeVar("_Parsed")
_NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
# A document of more tokens is rendered in a thread: it takes milliseconds.
_FEW_TOKENS: Final = 16 * 1024


async def tokenize(request: EdgeRequest) -> web.StreamResponse:
    """POST /tokenize."""
    message = await _parsed(request, parse_tokenization, default_model=_default_model(request))
    return await _answer(request, message, partial(tokenization, with_names=message.token_names))


async def detokenize(request: EdgeRequest) -> web.StreamResponse:
    """POST /detokenize."""
    message = await _parsed(request, parse_detokenization, default_model=_default_model(request))
    return await _answer(request, message, detokenization)


async def count_message_tokens(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/messages/count_tokens."""
    message, names = await _parsed(request, parse_count_tokens_request)
    counted = await count_tokens(request, message, names)
    return _counted(request, TokenCount(counted.count), counted)


async def count_response_tokens(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/responses/input_tokens."""
    parsed = await _parsed(request, parse_input_tokens_request, store=referred_responses(request))
    counted = await count_tokens(request, parsed.requests[0], parsed.other_names)
    return _counted(request, InputTokens(counted.count), counted)


async def count_tokens(
    request: EdgeRequest, message: GenerateRequest, names: Mapping[str, str]
) -> TokenizeResponse:
    """Counts the tokens of a prompt: the `prompt_tokens` in the usage of the same request.

    Args:
        request: The HTTP request, whose key is charged one request and no tokens.
        message: Its chat, text or token ids are counted. `suffix` and `truncate_prompt_tokens`,
            which change a prompt, are not looked at.
        names: The service's parameter names, each with the name that the client used; for errors.

    Raises:
        OpenAIError: The service refused the prompt, or failed.
        ModelNotFoundError: No upstream has the model.
        NoReplicaError: No replica of the model accepts requests.
    """
    counted = TokenizeRequest(model=message.model, count_only=True)
    kind = message.WhichOneof("input")
    if kind == "text":
        counted.text = message.text
    elif kind is not None:
        getattr(counted, kind).CopyFrom(getattr(message, kind))
    return await _call(request, counted, names)


def _counted(
    request: EdgeRequest, count: TokenCount | InputTokens, response: TokenizeResponse
) -> web.StreamResponse:
    return json_response(request, msgspec.json.encode(count), response.rate_limits)


async def _parsed(request: EdgeRequest, parse: Callable[..., _Parsed], **more: object) -> _Parsed:
    ignore_unknown = request.edge.config.ignore_unknown
    return parse(await read_body(request), ignore_unknown=ignore_unknown, **more)


def _default_model(request: EdgeRequest) -> str | None:
    return request.edge.router.default_model(ModelKind.MODEL_KIND_TEXT)


async def _call(
    request: EdgeRequest, message: TokenizeRequest, names: Mapping[str, str] = _NO_NAMES
) -> TokenizeResponse:
    model = request.edge.router.find(message.model)
    if model.kind != ModelKind.MODEL_KIND_TEXT:
        raise OpenAIError.of(not_a_text_model())
    if message.HasField("chat") and not model.text.chat:
        raise OpenAIError.of(not_a_chat_model(request.path.removeprefix("/")))
    translator = TokensResponse()
    exchange = Exchange(translator, names=names)
    await runner.collect(request, exchange, [message], call_options(request))
    return translator.response()


async def _answer(
    request: EdgeRequest, message: TokenizeRequest, render: Callable[[TokenizeResponse], bytes]
) -> web.StreamResponse:
    response = await _call(request, message)
    if response.count <= _FEW_TOKENS:
        document = render(response)
    else:
        document = await asyncio.to_thread(render, response)
    return json_response(request, document, response.rate_limits)
