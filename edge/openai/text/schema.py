"""The parameters that chat and completions have in common.

Parameters without effect are checked and dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from contract.limits import (
    MAX_ENTRIES,
    MAX_LISTED_CHARACTERS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
)
from contract.parameters import PARAMETERS, Parameter
from edge.openai.decoding.decoder import Refusing, refuse
from edge.openai.decoding.types import (
    ABSENT,
    INT32_MAX,
    AnyObject,
    Name,
    ObjectOrText,
    PositiveCount,
    Strict,
    StructT,
    Text,
    TokenIdText,
    extended,
)

# The inference service checks these too.
MAX_CHOICES: Final = 128
MAX_STOP_STRINGS: Final = 4
_BIAS: Final = Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)


class StreamOptions(Strict):
    """`stream_options`: what a stream contains besides output. Obfuscation is never added."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    # A parameter of vLLM.
    continuous_usage_stats: bool | None = None


class TextFormat(Strict, tag_field="type", tag="text"):
    """Free text."""


class JsonObjectFormat(Strict, tag_field="type", tag="json_object"):
    """One JSON object."""


class JsonSchema(Strict):
    """A named schema."""

    name: Name
    schema: AnyObject
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict, tag_field="type", tag="json_schema"):
    """JSON that obeys a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


# The server's configuration decides these.
@refuse(
    structural_tag=[],
    disable_any_whitespace=[b"false"],
    disable_additional_properties=[b"false"],
    whitespace_pattern=[],
)
class StructuredOutputs(Refusing):
    """vLLM's form of constraints: exactly one of these."""

    json: ObjectOrText = ABSENT
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_ENTRIES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


def _type(parameter: Parameter) -> Any:
    minimum = "gt" if parameter.above_minimum else "ge"
    limits: dict[str, Any] = {minimum: parameter.minimum, "le": parameter.maximum}
    if parameter.repeated and parameter.kind is str:
        # The service refuses a blank text.
        limits = {"max_length": MAX_LISTED_CHARACTERS, "extra_json_schema": {"pattern": r"\S"}}
    one: Any = Annotated[parameter.kind, Meta(**limits)]
    shortest = 1 if parameter.not_empty else None
    length = Meta(min_length=shortest, max_length=parameter.max_length)
    return Annotated[list[one] if parameter.repeated else one, length]


def with_parameters(struct: type[StructT]) -> type[StructT]:
    """Adds every parameter of the contract to a schema; null means absent for all of them."""
    return extended(struct, [(each.name, _type(each) | None, None) for each in PARAMETERS])


# Parameters of vLLM.
@refuse(
    use_beam_search=[b"false"],
    length_penalty=[b"1", b"1.0"],
    watermarking=[b"false"],
    repetition_detection=[b"{}"],
    logprob_token_ids=[b"[]"],
    logits_processors=[b"[]"],
    thinking_token_budget=[],
    spaces_between_special_tokens=[b"true"],
    prompt_embeds=[b"[]"],
    return_tokens_as_token_ids=[b"false"],
    return_token_offsets=[b"false"],
    return_mm_kwargs=[b"false"],
    mm_payload=[b'"none"', b'"tensors"'],
    routed_experts_prompt_start=[b"0"],
    kv_transfer_params=[b"{}"],
    ec_transfer_params=[b"{}"],
    vllm_xargs=[b"{}"],
)
@with_parameters
class GenerationRequest(Refusing, kw_only=True):
    """Parameters of chat and legacy completions alike; contract/parameters.py adds more."""

    model: Text = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    logit_bias: (
        Annotated[dict[TokenIdText, Annotated[float, _BIAS]], Meta(max_length=MAX_ENTRIES)] | None
    ) = None
    user: str | None = None
    response_format: ResponseFormat | None = None

    # Additional parameters of vLLM; null means absent.
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Meta(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: ObjectOrText = ABSENT
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_ENTRIES)] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    # Accepted without effect.
    request_id: str | None = None
    # It chooses the replica, and nothing else.
    session_id: str | None = None
    stream_interval: PositiveCount | None = None
