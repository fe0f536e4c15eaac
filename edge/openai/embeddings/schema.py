"""Parameters of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from contract.limits import MAX_INPUTS
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    PositiveCount,
    PromptList,
    Text,
    TruncatedTokens,
    TruncationSide,
)

EncodingFormat = Literal["float", "base64"]
InputList = Annotated[
    PromptList,
    Meta(extra_json_schema={"maxItems": MAX_INPUTS, "not": {"contains": {"const": ""}}}),
]


@refuse(
    # Embedding models are trained on texts, and few of them have a chat template.
    messages=[],
    priority=[b"0"],
    padding=[b'"do_not_pad"'],
    add_special_tokens=[b"true"],
    use_activation=[b"true"],
    embed_dtype=[b'"float32"'],
    endianness=[b'"little"', b'"native"'],
    mm_processor_kwargs=[],
)
class EmbeddingsRequest(Refusing):
    """The body; null is refused for OpenAI's own members other than `user`."""

    input: Text | InputList
    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    encoding_format: EncodingFormat = "float"
    dimensions: PositiveCount | UnsetType = UNSET
    user: str | None = None

    # Parameters of vLLM.
    truncate_prompt_tokens: TruncatedTokens | None = None
    truncation_side: TruncationSide | None = None
    # Accepted without effect.
    request_id: str | None = None
    cache_salt: str | None = None
