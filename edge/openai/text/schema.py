"""What the generation endpoints have in common, as typed members.

A member is `| None` where the contract calls it nullable (null is then the same as leaving it
out) and `| UnsetType` where null is refused. Members that only advise are checked and forgotten.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from edge.openai.decoding.types import (
    ABSENT,
    INT32_MAX,
    MAX_LIST,
    AnyJson,
    AnyObject,
    Count,
    Name,
    ObjectOrText,
    PositiveCount,
    Seed,
    Strict,
    Text,
    TokenId,
    TokenIdText,
)

# Repeated by the inference service, which protects the engine; here they spare the work.
MAX_CHOICES: Final = 128
MAX_STOP_STRINGS: Final = 4

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Unit = Annotated[float, Meta(ge=0, le=1)]


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
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_LIST)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    # Refused by name: the server's own settings decide.
    structural_tag: AnyJson = ABSENT
    disable_any_whitespace: AnyJson = ABSENT
    disable_additional_properties: AnyJson = ABSENT
    whitespace_pattern: AnyJson = ABSENT


class GenerationRequest(Strict, kw_only=True):
    """Members that chat and legacy completions share."""

    model: Text = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenIdText, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LIST)
        ]
        | None
    ) = None
    seed: Seed | None = None
    user: str | None = None
    response_format: ResponseFormat | UnsetType = UNSET

    # vLLM's documented extras; null means absent for all of them.
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    min_p: Unit | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_LIST)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    priority: Annotated[int, Meta(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: ObjectOrText = ABSENT
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_LIST)] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    # Advice without effect: x-request-id correlates, and nothing is kept between requests.
    request_id: str | None = None
    session_id: str | None = None
    stream_interval: PositiveCount | None = None

    # Refused by name unless they ask for what happens anyway (refusals.Refusals).
    use_beam_search: AnyJson = ABSENT
    length_penalty: AnyJson = ABSENT
    watermarking: AnyJson = ABSENT
    repetition_detection: AnyJson = ABSENT
    bad_words: AnyJson = ABSENT
    allowed_token_ids: AnyJson = ABSENT
    logprob_token_ids: AnyJson = ABSENT
    logits_processors: AnyJson = ABSENT
    thinking_token_budget: AnyJson = ABSENT
    truncate_prompt_tokens: AnyJson = ABSENT
    truncation_side: AnyJson = ABSENT
    spaces_between_special_tokens: AnyJson = ABSENT
    prompt_embeds: AnyJson = ABSENT
    return_token_ids: AnyJson = ABSENT
    return_tokens_as_token_ids: AnyJson = ABSENT
    return_token_offsets: AnyJson = ABSENT
    return_mm_kwargs: AnyJson = ABSENT
    mm_payload: AnyJson = ABSENT
    routed_experts_prompt_start: AnyJson = ABSENT
    kv_transfer_params: AnyJson = ABSENT
    ec_transfer_params: AnyJson = ABSENT
    vllm_xargs: AnyJson = ABSENT
