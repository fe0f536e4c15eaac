"""Null means absent: in bodies that send every optional member, and in schemas to come."""

from __future__ import annotations

import json
import random
from typing import Annotated, Any

import msgspec
import msgspec.inspect as mi
import pytest

from edge.anthropic.schema import MessagesRequest
from edge.openai.chat.schema import ChatRequest
from edge.openai.completions.schema import CompletionRequest
from edge.openai.decoding.decoder import Schema
from edge.openai.decoding.types import Strict
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.errors import OpenAIError
from edge.openai.images.schema import ImageRequest
from edge.openai.responses.schema import ResponsesRequest
from edge.openai.text.request import ParsedText
from edge.openai.tokens.schema import DetokenizationRequest, TokenizationRequest
from tests.unit.openai.parameters_walk import flat
from tests.unit.openai.test_fuzz import PARSERS, mutated, seeds, valid_seeds

SCHEMAS: dict[str, Any] = {
    "chat": ChatRequest,
    "responses": ResponsesRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingsRequest,
    "images": ImageRequest,
    "messages": MessagesRequest,
    "tokenize": TokenizationRequest,
    "detokenize": DetokenizationRequest,
}


def dumped(type_: mi.Type, value: Any) -> Any:
    """The value with null for each optional member that it lacks, at every depth."""
    for inner in flat(type_):
        if isinstance(inner, mi.ListType) and isinstance(value, list):
            return [dumped(inner.item_type, entry) for entry in value]
        if isinstance(inner, mi.StructType) and isinstance(value, dict):
            if inner.tag_field and value.get(inner.tag_field) != inner.tag:
                continue
            fields = {field.encode_name: field for field in inner.fields}
            optional = [name for name, field in fields.items() if not field.required]
            known = {
                name: dumped(fields[name].type, value[name]) for name in value if name in fields
            }
            return dict.fromkeys(optional) | value | known
    return value


def calls_of(parsed: Any) -> list[Any]:
    if isinstance(parsed, ParsedText):
        return [*parsed.requests, parsed.stream, parsed.priority]
    return [parsed.request]


# Those that lack an optional member.
BODIES = [
    (endpoint, seed)
    for endpoint in PARSERS
    for seed in valid_seeds(endpoint)
    if dumped(mi.type_info(SCHEMAS[endpoint]), seed) != seed
]


@pytest.mark.parametrize(("endpoint", "body"), BODIES, ids=lambda value: str(value)[:60])
def test_null_for_every_other_member_changes_nothing(endpoint: str, body: dict[str, Any]) -> None:
    parse = PARSERS[endpoint]
    everything = dumped(mi.type_info(SCHEMAS[endpoint]), body)
    assert "null" in json.dumps(everything)
    plain = parse(json.dumps(body).encode(), ignore_unknown=True)
    nulls = parse(json.dumps(everything).encode(), ignore_unknown=True)
    assert calls_of(nulls) == calls_of(plain)


def parsed(endpoint: str, value: Any) -> Any:
    """The parsed body; None if it is refused."""
    try:
        return calls_of(PARSERS[endpoint](json.dumps(value).encode()))
    except OpenAIError:
        return None


@pytest.mark.parametrize("endpoint", PARSERS)
def test_null_changes_nothing_in_mutated_bodies_either(endpoint: str) -> None:
    dice = random.Random(f"null {endpoint}")
    valid, corpus = valid_seeds(endpoint), seeds(endpoint)
    accepted = 0
    for _ in range(1000):
        try:
            value = json.loads(mutated(dice, dice.choice(valid), corpus))
        except (ValueError, RecursionError):
            continue
        if (plain := parsed(endpoint, value)) is not None:
            accepted += 1
            assert parsed(endpoint, dumped(mi.type_info(SCHEMAS[endpoint]), value)) == plain
    assert accepted > 50


class Inner(Strict):
    """A struct with an optional member that does not accept null."""

    count: int = 1


class Outer(Strict):
    """A struct with it inside."""

    entries: list[Annotated[Inner, msgspec.Meta()] | str] | None = None


@pytest.mark.parametrize("struct", [Inner, Outer])
def test_schema_with_an_optional_member_that_refuses_null_is_no_schema(struct: Any) -> None:
    with pytest.raises(TypeError, match=r"Inner\.count does not accept null"):
        Schema(struct)
