"""POST /tokenize and POST /detokenize: the requests, from JSON to a TokenizeRequest."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from contract.refusals import missing_model
from contract.token_refusals import nothing_to_tokenize, special_tokens_of_text_only
from edge.openai import errors
from edge.openai.chat.message_schema import Message
from edge.openai.chat.request import chat_message
from edge.openai.chat.schema import ChatRequest
from edge.openai.decoding.decoder import Schema, is_given
from edge.openai.errors import OpenAIError
from edge.openai.tokens.schema import DetokenizationRequest, TokenizationRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest

_TOKENIZATION: Final[Schema[TokenizationRequest]] = Schema(TokenizationRequest)
_DETOKENIZATION: Final[Schema[DetokenizationRequest]] = Schema(DetokenizationRequest)
_OF_CHATS: Final = (
    "tools", "tool_choice", "reasoning_effort", "add_generation_prompt", "continue_final_message",
)  # fmt: skip
_of_chats: Final = attrgetter(*_OF_CHATS)


def parse_tokenization(
    body: bytes, default_model: str | None = None, *, ignore_unknown: bool = False
) -> TokenizeRequest:
    """Reads and checks the body of a tokenization.

    Args:
        body: The body.
        default_model: Of a body without a model; None for none.
        ignore_unknown: Drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    request = _TOKENIZATION.decode(body, ignore_unknown=ignore_unknown)
    request.check_refused()
    model = _model(request.model, default_model)
    if request.messages is not None:
        return _of_chat(request, request.messages, model, ignore_unknown=ignore_unknown)
    if request.prompt is None:
        raise OpenAIError.of(nothing_to_tokenize())
    given = [name for name in _OF_CHATS if getattr(request, name) is not None]
    if is_given(request.chat_template_kwargs):
        given.append("chat_template_kwargs")
    if given:
        raise errors.invalid_request(
            f"The '{given[0]}' parameter is only allowed with 'messages'.", given[0]
        )
    message = TokenizeRequest(model=model, text=request.prompt)
    message.token_names = bool(request.return_token_strs)
    if request.add_special_tokens is not None:
        message.add_special_tokens = request.add_special_tokens
    return message


def parse_detokenization(
    body: bytes, default_model: str | None = None, *, ignore_unknown: bool = False
) -> TokenizeRequest:
    """Reads and checks the body of a detokenization; see `parse_tokenization`."""
    request = _DETOKENIZATION.decode(body, ignore_unknown=ignore_unknown)
    message = TokenizeRequest(model=_model(request.model, default_model))
    # Set even if it is empty: then it has an empty text.
    message.token_ids.SetInParent()
    message.token_ids.ids.extend(request.tokens)
    return message


def _model(name: str | None, default: str | None) -> str:
    if not (model := name or default):
        raise OpenAIError.of(missing_model())
    return model


def _of_chat(
    request: TokenizationRequest,
    messages: str | list[Message],
    model: str,
    *,
    ignore_unknown: bool,
) -> TokenizeRequest:
    if request.prompt is not None:
        raise errors.invalid_request(
            "'prompt' and 'messages' cannot be given at the same time.", "prompt"
        )
    if request.add_special_tokens:
        raise OpenAIError.of(special_tokens_of_text_only())
    values = dict(zip(_OF_CHATS, _of_chats(request), strict=True))
    chat = ChatRequest(
        model=model,
        messages=messages,
        chat_template_kwargs=request.chat_template_kwargs,
        **values,
    )
    return TokenizeRequest(
        model=model,
        chat=chat_message(chat, ignore_unknown=ignore_unknown).chat,
        token_names=bool(request.return_token_strs),
    )
