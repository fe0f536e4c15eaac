"""Checks of a prompt that need no tokenizer."""

from __future__ import annotations

from inference.errors import context_error
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest


def check_text_length(
    request: GenerateRequest | TokenizeRequest, context_length: int, characters_a_token: int
) -> None:
    """Refuses a text that cannot fit the context, however it is tokenized, before it waits.

    Args:
        request: Any form of input; token ids have no text.
        context_length: Tokens of the context under the requested name.
        characters_a_token: The most characters that one token can stand for.

    Raises:
        InferenceError: The context error, with the least number of tokens.
    """
    characters = len(request.text)
    if chat := request.HasField("chat"):
        characters = sum(len(part.text) for m in request.chat.messages for part in m.parts)
    if (at_least := characters // characters_a_token) > context_length:
        wanted = request.stopping.max_tokens if isinstance(request, GenerateRequest) else 0
        raise context_error(chat, context_length, at_least, wanted, exact=False)
