"""Parameters of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from contract.limits import MAX_INPUTS
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import PositiveCount, PromptList, Text

EncodingFormat = Literal["float", "base64"]
InputList = Annotated[
    PromptList,
    Meta(extra_json_schema={"maxItems": MAX_INPUTS, "not": {"contains": {"const": ""}}}),
]


@refuse(
    priority=[b"0"],
    # Inputs that are too long get an error; they are not truncated.
    truncate_prompt_tokens=[],
    truncation_side=[b'"left"', b'"right"'],
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

    # Parameters of vLLM, accepted without effect.
    request_id: str | None = None
    cache_salt: str | None = None
