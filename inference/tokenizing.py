"""Tokenize: the tokens of a prompt, without running the model.

It takes the steps of every request (serve.py), with two differences. It needs no permit of the
model's engine, so a count is quick while the engine is full; permits of its own bound the work of
the tokenizer. And it is charged one request, and no tokens.

The count is that of Generate, because the engine prepares both with the same code. A prompt that
exceeds the context is counted as well: callers count to find out how much they have to cut.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from contract.limits import MAX_TOKENS
from contract.token_refusals import nothing_to_tokenize, special_tokens_of_text_only
from inference.conversation import check_chat
from inference.engines.base import Emit, Engine, Terms, TextEngine, Tokens
from inference.errors import InferenceError, check_length, context_error
from inference.prompts import check_text_length
from inference.registry import Registry, ServedModel
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse


def check_tokenize(request: TokenizeRequest, engine: Engine, context_length: int) -> None:
    """Refuses requests beyond the limits of the service.

    Args:
        request: From any caller.
        engine: The model's engine.
        context_length: Tokens of the context under the requested name.

    Raises:
        InferenceError: With OpenAI's code and the name of the parameter.
    """
    kind = request.WhichOneof("input")
    if kind is None:
        raise InferenceError.of(nothing_to_tokenize())
    if kind == "chat":
        check_chat(request.chat)
    if kind != "text" and request.add_special_tokens:
        raise InferenceError.of(special_tokens_of_text_only())
    check_length(len(request.token_ids.ids), _most_tokens(context_length), "tokens")
    if engine.characters_a_token is not None:
        check_text_length(request, context_length, engine.characters_a_token)


def find_tokenizer(registry: Registry, request: TokenizeRequest) -> tuple[ServedModel, Tokenizing]:
    """The model and what serves the request; raises InferenceError."""
    served, engine = registry.tokenizer(request.model, chat=request.HasField("chat"))
    return served, Tokenizing(engine)


@dataclass(frozen=True, slots=True)
class PreparedTokens:
    """The response, without what the service adds. A count uses no tokens."""

    response: TokenizeResponse
    prompt_tokens: int = 0
    max_output_tokens: int = 0


class Tokenizing:
    """Serves TokenizeRequests with a text engine, in the two steps of a ServingEngine."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine

    async def prepare(self, request: TokenizeRequest, terms: Terms) -> PreparedTokens:
        """Tokenizes.

        Raises:
            InferenceError: The input is not valid for the model, or has too many tokens even to
                be counted.
            EngineDeadError: The engine is closed.
        """
        tokens = await self._engine.tokenize(request)
        if (count := len(tokens.ids)) > _most_tokens(terms.context_length):
            raise context_error(request.HasField("chat"), terms.context_length, count, 0)
        # In a thread: a million tokens take tens of milliseconds.
        response = await asyncio.to_thread(_response, request, tokens)
        response.context_length = terms.context_length
        return PreparedTokens(response)

    async def generate(self, prepared: PreparedTokens, emit: Emit) -> None:
        """Emits the one message."""
        emit(prepared.response)


def _most_tokens(context_length: int) -> int:
    return max(MAX_TOKENS, context_length)


def _response(request: TokenizeRequest, tokens: Tokens) -> TokenizeResponse:
    response = TokenizeResponse(count=len(tokens.ids))
    if request.count_only:
        return response
    if request.HasField("token_ids"):
        response.text = tokens.text
    else:
        response.token_ids.extend(tokens.ids)
    response.token_names.extend(tokens.names)
    return response
