"""What the generation endpoints have in common, as typed members.

A member is `| None` where the contract calls it nullable (null is then the same as leaving it
out) and `| UnsetType` where null is refused. Members that only advise are checked and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract.limits import MAX_ENTRIES, MAX_LOGIT_BIAS, MAX_LOGPROBS
from contract.parameters import PARAMETERS, Parameter
from edge.openai.decoding.types import (
    ABSENT,
    INT32_MAX,
    AnyJson,
    AnyObject,
    Name,
    ObjectOrText,
    PositiveCount,
    Strict,
    Text,
    TokenIdText,
)

StructT = TypeVar("StructT", bound=Struct)

# Repeated by the inference service, which protects the engine; here they spare the work.
MAX_CHOICES: Final = 128
MAX_STOP_STRINGS: Final = 4
_BIAS: Final = Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)


class StreamOptions(Strict):
    """What a stream holds beside the text. Obfuscation is never added."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    # vLLM's; refused by name.
    continuous_usage_stats: AnyJson = ABSENT


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


class StructuredOutputs(Strict):
    """vLLM's form of constraints: exactly one of these."""

    json: ObjectOrText = ABSENT
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_ENTRIES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    # Refused by name: the server's own settings decide.
    structural_tag: AnyJson = ABSENT
    disable_any_whitespace: AnyJson = ABSENT
    disable_additional_properties: AnyJson = ABSENT
    whitespace_pattern: AnyJson = ABSENT


# Parameters of vLLM that are refused by name, each with the JSON texts that have no effect and are
# accepted; null is always accepted.
UNSUPPORTED: Final[Mapping[str, frozenset[bytes]]] = {
    "use_beam_search": frozenset({b"false"}),
    "length_penalty": frozenset({b"1", b"1.0"}),
    "watermarking": frozenset({b"false"}),
    "repetition_detection": frozenset(),
    "bad_words": frozenset({b"[]"}),
    "logprob_token_ids": frozenset(),
    "logits_processors": frozenset({b"[]"}),
    "thinking_token_budget": frozenset(),
    "truncate_prompt_tokens": frozenset(),
    # Says nothing without the member above.
    "truncation_side": frozenset({b'"left"', b'"right"'}),
    "spaces_between_special_tokens": frozenset({b"true"}),
    "prompt_embeds": frozenset(),
    "return_token_ids": frozenset({b"false"}),
    "return_tokens_as_token_ids": frozenset({b"false"}),
    "return_token_offsets": frozenset({b"false"}),
    "return_mm_kwargs": frozenset({b"false"}),
    "mm_payload": frozenset({b'"none"', b'"tensors"'}),
    "routed_experts_prompt_start": frozenset({b"0"}),
    "kv_transfer_params": frozenset(),
    "ec_transfer_params": frozenset(),
    "vllm_xargs": frozenset({b"{}"}),
}


def _type(parameter: Parameter) -> Any:
    minimum = "gt" if parameter.above_minimum else "ge"
    limits = {minimum: parameter.minimum, "le": parameter.maximum}
    given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    one: Any = parameter.kind
    if given:
        one = Annotated[one, Meta(**given)]
    if parameter.repeated:
        one = list[one]
    if parameter.max_length is not None or parameter.not_empty:
        shortest = 1 if parameter.not_empty else None
        one = Annotated[one, Meta(min_length=shortest, max_length=parameter.max_length)]
    return one


def with_parameters(
    unsupported: Iterable[str],
) -> Callable[[type[StructT]], type[StructT]]:
    """Adds every parameter to a request schema; null means absent for all of them.

    Args:
        unsupported: Names that take any JSON, to be refused with an error of their own.
    """
    offered = [(parameter.name, _type(parameter) | None, None) for parameter in PARAMETERS]
    refused = [(name, AnyJson, ABSENT) for name in unsupported]

    def add(struct: type[StructT]) -> type[StructT]:
        full: Any = msgspec.defstruct(
            struct.__name__,
            [*offered, *refused],
            bases=(struct,),
            namespace={"__doc__": struct.__doc__},
            module=struct.__module__,
            kw_only=True,
            gc=False,
        )
        with_all: type[StructT] = full
        return with_all

    return add


@with_parameters(UNSUPPORTED)
class GenerationRequest(Strict, kw_only=True):
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
    response_format: ResponseFormat | UnsetType = UNSET

    # vLLM's documented extras; null means absent for all of them.
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    priority: Annotated[int, Meta(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: ObjectOrText = ABSENT
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_ENTRIES)] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    # Advice without effect: x-request-id correlates, and nothing is kept between requests.
    request_id: str | None = None
    session_id: str | None = None
    stream_interval: PositiveCount | None = None
