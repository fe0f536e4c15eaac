"""POST /tokenize and POST /detokenize: the service's one message, and the documents."""

from __future__ import annotations

import msgspec

from edge.openai import errors
from edge.openai.tokens.schema import Detokenization, Tokenization
from edge.openai.translator import Translator
from isthmus.v1.tokenize_pb2 import TokenizeResponse
from isthmus.v1.usage_pb2 import Admitted


class TokensResponse(Translator[TokenizeResponse]):
    """Keeps the message of the request's one source."""

    def __init__(self) -> None:
        self._response: TokenizeResponse | None = None

    def source(self, _number: int) -> TokensResponse:
        return self

    def admit(self, part: TokenizeResponse | None) -> Admitted | None:
        """An admission with the response's rate limits; Tokenize sends no separate admission."""
        return None if part is None else Admitted(rate_limits=part.rate_limits)

    def text(self, text: str) -> bytes:
        """Never called: nothing is generated."""
        raise NotImplementedError

    def part(self, part: TokenizeResponse) -> bytes:
        self._response = part
        return b""

    def response(self) -> TokenizeResponse:
        """The message.

        Raises:
            OpenAIError: 500, the call ended without one.
        """
        if self._response is None:
            raise errors.internal_error()
        return self._response


def tokenization(response: TokenizeResponse, *, with_names: bool) -> bytes:
    """The JSON of a Tokenization; `token_strs` is null without names."""
    return msgspec.json.encode(
        Tokenization(
            count=response.count,
            max_model_len=response.context_length,
            tokens=response.token_ids[:],
            token_strs=response.token_names[:] if with_names else None,
        )
    )


def detokenization(response: TokenizeResponse) -> bytes:
    """The JSON of a Detokenization."""
    return msgspec.json.encode(Detokenization(response.text))
