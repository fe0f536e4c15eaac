"""Parameters of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from contract.limits import MAX_INPUTS
from edge.openai.decoding.inputs import PromptList
from edge.openai.decoding.types import ABSENT, AnyJson, PositiveCount, Strict, Text

EncodingFormat = Literal["float", "base64"]


InputList = Annotated[
    PromptList,
    Meta(extra_json_schema={"maxItems": MAX_INPUTS, "not": {"contains": {"const": ""}}}),
]


class EmbeddingsRequest(Strict):
    """The body; null is refused for OpenAI's own members other than `user`."""

    input: Text | InputList
    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    encoding_format: EncodingFormat = "float"
    dimensions: PositiveCount | UnsetType = UNSET
    user: str | None = None

    # vLLM's extras. Advice without effect: x-request-id correlates, and nothing is cached.
    request_id: str | None = None
    cache_salt: str | None = None
    # Refused by name unless they ask for what happens anyway.
    priority: AnyJson = ABSENT
    truncate_prompt_tokens: AnyJson = ABSENT
    truncation_side: AnyJson = ABSENT
    padding: AnyJson = ABSENT
    add_special_tokens: AnyJson = ABSENT
    use_activation: AnyJson = ABSENT
    embed_dtype: AnyJson = ABSENT
    endianness: AnyJson = ABSENT
    mm_processor_kwargs: AnyJson = ABSENT
