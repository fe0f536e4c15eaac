"""Parameters of POST /v1/completions, and the types of its response."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from contract.limits import MAX_BEST_OF
from edge.openai.decoding.decoder import refuse
from edge.openai.decoding.types import Count, PromptList, TruncatedTokens, TruncationSide
from edge.openai.text.logprobs import CompletionLogprobs, PromptLogprob
from edge.openai.text.schema import GenerationRequest
from edge.openai.text.translator import Usage

DEFAULT_MAX_TOKENS: Final = 16


@refuse(add_special_tokens=[b"true"])
class CompletionRequest(GenerationRequest, kw_only=True):
    """The body."""

    prompt: str | PromptList | None
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=0, le=MAX_BEST_OF)] | None = None
    suffix: str | None = None

    # Additional parameters of vLLM's API.
    truncate_prompt_tokens: TruncatedTokens | None = None
    truncation_side: TruncationSide | None = None


class CompletionChoice(Struct, kw_only=True):
    """One answer of several, or a piece of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The document."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
