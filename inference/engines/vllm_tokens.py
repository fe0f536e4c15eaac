"""Counts of tokens, and the text of tokens, with vLLM's renderer and tokenizer."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm.renderers import TokenizeParams

from inference.engines.base import Tokens
from inference.engines.vllm_rendering import InputRenderer
from inference.errors import check_vocabulary
from isthmus.v1.tokenize_pb2 import TokenizeRequest


class TokenCounter:
    """Tokenizes as for a generation, which then does not happen.

    Args:
        inputs: Renders chats and texts.
        tokenizer: The model's.
        vocabulary_size: Number of token ids.
    """

    def __init__(self, inputs: InputRenderer, tokenizer: Any, vocabulary_size: int) -> None:
        self._inputs = inputs
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """See TextEngine.tokenize."""
        if request.HasField("token_ids"):
            return await asyncio.to_thread(self._detokenized, request)
        if request.HasField("chat"):
            _, engine_input = await self._inputs.chat(request.chat, is_run=False)
            ids: list[int] = engine_input["prompt_token_ids"]
        else:
            ids = await self._text(request)
        if not request.token_names:
            return Tokens(ids)
        return Tokens(ids, await asyncio.to_thread(self._names, ids))

    async def _text(self, request: TokenizeRequest) -> list[int]:
        special = request.add_special_tokens or not request.HasField("add_special_tokens")
        if not request.text:
            return self._inputs.beginning() if special else []
        self._inputs.check_length(len(request.text), 0, chat=False)
        parameters = TokenizeParams(max_total_tokens=None, add_special_tokens=special)
        engine_input = await self._inputs.prompt(request.text, parameters)
        ids: list[int] = engine_input["prompt_token_ids"]
        return ids

    def _detokenized(self, request: TokenizeRequest) -> Tokens:
        ids = list(request.token_ids.ids)
        check_vocabulary(ids, self._vocabulary_size, "tokens")
        text = str(self._tokenizer.decode(ids))
        return Tokens(ids, self._names(ids) if request.token_names else (), text)

    def _names(self, ids: list[int]) -> list[str]:
        # A model's last ids may be unused: they have no name.
        return [name or "" for name in self._tokenizer.convert_ids_to_tokens(ids)]
