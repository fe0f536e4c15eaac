"""Token counts in OpenAI's shape."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from isthmus.v1 import usage_pb2


class PromptTokensDetails(Struct):
    """Of the prompt's tokens."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct):
    """Of the answer's tokens."""

    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct):
    """Always whole: details are objects, never null."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class UsageSum:
    """The sum over the sources of a request."""

    def __init__(self) -> None:
        self._prompt = self._completion = self._cached = self._reasoning = 0

    def add(self, usage: usage_pb2.Usage) -> None:
        """Adds one source's counts."""
        self._prompt += usage.prompt_tokens
        self._completion += usage.completion_tokens
        self._cached += usage.cached_tokens
        self._reasoning += usage.reasoning_tokens

    def total(self) -> Usage:
        """The sum so far."""
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._reasoning),
        )

    def json(self) -> bytes:
        """The sum so far, encoded."""
        return msgspec.json.encode(self.total())
