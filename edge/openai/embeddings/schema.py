"""Parameters of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

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
    # vLLM also embeds chat messages. Refused here: few embedding models have a chat template.
    messages=[],
    priority=[b"0"],
    padding=[b'"do_not_pad"'],
    add_special_tokens=[b"true"],
    use_activation=[b"true"],
    embed_dtype=[b'"float32"'],
    endianness=[b'"little"', b'"native"'],
    mm_processor_kwargs=[b"{}"],
)
class EmbeddingsRequest(Refusing):
    """The body."""

    input: Text | InputList
    model: Annotated[str, Meta(min_length=1)] | None = None
    encoding_format: EncodingFormat | None = None
    dimensions: PositiveCount | None = None
    user: str | None = None

    # Parameters of vLLM.
    truncate_prompt_tokens: TruncatedTokens | None = None
    truncation_side: TruncationSide | None = None
    # Accepted without effect.
    request_id: str | None = None
    cache_salt: str | None = None
