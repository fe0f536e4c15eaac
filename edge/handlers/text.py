"""POST /v1/chat/completions, /v1/responses, /v1/completions and /v1/messages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web

from contract.refusals import not_a_chat_model, not_a_completion_model
from edge.anthropic.request import parse_messages_request
from edge.exchange import runner
from edge.exchange.json_response import json_response
from edge.exchange.machine import Exchange
from edge.handlers.request import call_options, read_body
from edge.handlers.responses import referred_responses
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.errors import OpenAIError
from edge.openai.responses.request import parse_responses_request
from edge.openai.responses.response import ID_PREFIX
from edge.openai.text.request import ParsedText
from edge.openai.text.translator import Identity
from edge.state import EdgeRequest
from isthmus.v1.models_pb2 import Model, ModelKind

# Headers with the id of a conversation; the last one is Claude Code's.
_SESSIONS: Final = ("x-session-id", "session-id", "x-claude-code-session-id")


async def create_chat_completion(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _create(request, parse_chat_request, _check_chat, "chatcmpl-")


async def create_response(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/responses."""
    parse = partial(parse_responses_request, store=referred_responses(request))
    return await _create(request, parse, _check_response, ID_PREFIX)


async def create_completion(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _create(request, parse_completion_request, _check_completion, "cmpl-")


async def create_message(request: EdgeRequest) -> web.StreamResponse:
    """POST /v1/messages."""
    return await _create(request, parse_messages_request, _check_message, "msg_")


def _check_chat(model: Model, endpoint: str = "v1/chat/completions") -> None:
    if not model.text.chat:
        raise OpenAIError.of(not_a_chat_model(endpoint))


_check_response: Final = partial(_check_chat, endpoint="v1/responses")
_check_message: Final = partial(_check_chat, endpoint="v1/messages")


def _check_completion(model: Model) -> None:
    if model.kind != ModelKind.MODEL_KIND_TEXT:
        raise OpenAIError.of(not_a_completion_model())


def _affinity(request: EdgeRequest, said: str) -> str:
    """The client's key for requests with a common prefix: a parameter, else a header, else ""."""
    if said:
        return said
    headers = request.headers
    return next((key for name in _SESSIONS if (key := headers.get(name))), "")


async def _create(
    request: EdgeRequest,
    parse: Callable[..., ParsedText],
    check: Callable[[Model], None],
    id_prefix: str,
) -> web.StreamResponse:
    edge = request.edge
    parsed = parse(await read_body(request), ignore_unknown=edge.config.ignore_unknown)
    check(edge.router.find(parsed.model))
    identity = Identity(id_prefix + os.urandom(16).hex(), int(time.time()))
    options = call_options(request, parsed.priority, partial(_affinity, request, parsed.affinity))
    calls = parsed.requests
    if parsed.stream:
        exchange = Exchange(
            parsed.stream_translator(identity), len(calls), parsed.other_names, parsed.list_name
        )
        return await runner.stream(request, exchange, calls, options)
    translator = parsed.document_translator(identity)
    exchange = Exchange(translator, len(calls), parsed.other_names, parsed.list_name)
    await runner.collect(request, exchange, calls, options)
    return json_response(request, translator.document(), exchange.rate_limits)
