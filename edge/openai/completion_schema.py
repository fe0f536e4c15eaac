"""Members of POST /v1/completions, and of its answer."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from edge.openai.logprobs import CompletionLogprobs, PromptLogprob
from edge.openai.schema import ABSENT, AnyJson, Count, GenerationRequest, TokenId
from edge.openai.usage import Usage

MAX_PROMPTS: Final = 2048
DEFAULT_MAX_TOKENS: Final = 16
TokenIdList = Annotated[list[TokenId], Meta(min_length=1)]
# A list holds strings, token ids or lists of token ids, but never two of these.
_ONE_FORM: Final = [
    {"items": {"type": "integer"}},
    {"items": {"type": "string"}, "maxItems": MAX_PROMPTS},
    {"items": {"type": "array"}, "maxItems": MAX_PROMPTS},
]
PromptList = Annotated[
    list[str | TokenId | TokenIdList], Meta(min_length=1, extra_json_schema={"anyOf": _ONE_FORM})
]


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body."""

    prompt: str | PromptList | None
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None

    # Refused by name unless it asks for what happens anyway.
    add_special_tokens: AnyJson = ABSENT


class CompletionChoice(Struct, kw_only=True):
    """One answer of several, or a piece of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The document."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
