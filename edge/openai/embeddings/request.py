"""POST /v1/embeddings: the request, from JSON to an EmbedRequest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from contract import refusals
from contract.limits import MAX_INPUT_TOKENS, MAX_INPUTS
from edge.openai.decoding.decoder import Schema
from edge.openai.decoding.types import TRUNCATION_SIDES, Input, read_inputs
from edge.openai.embeddings.schema import EmbeddingsRequest, EncodingFormat
from edge.openai.errors import OpenAIError
from isthmus.v1.embed_pb2 import EmbedRequest

_SCHEMA: Final[Schema[EmbeddingsRequest]] = Schema(EmbeddingsRequest)


_NO_INPUT: Final = ("missing_required_parameter", "input")


@dataclass(frozen=True, slots=True)
class ParsedEmbeddings:
    """A checked embeddings request.

    Attributes:
        model: The requested name; "" if the request has none.
        request: The request to the inference service; the handler sets its model.
        encoding_format: How the vectors are written.
        other_names: The service's parameter names, each with the name that the client used; for
            errors.
    """

    model: str
    request: EmbedRequest
    encoding_format: EncodingFormat
    other_names: Mapping[str, str]


def parse_embeddings_request(body: bytes, *, ignore_unknown: bool = False) -> ParsedEmbeddings:
    """Reads and checks a body. `ignore_unknown` drops unknown parameters, else they are refused.

    Raises:
        OpenAIError: 400.
    """
    try:
        request = _SCHEMA.decode(body, ignore_unknown=ignore_unknown)
    except OpenAIError as error:
        if (error.code, error.param) == _NO_INPUT and _has_messages(body):
            raise OpenAIError.of(refusals.chat_to_embed()) from error
        raise
    request.check_refused()
    model = request.model or ""
    inputs = read_inputs(request.input)
    if not isinstance(request.input, str) and len(request.input) > MAX_INPUTS:
        # One flat list of token ids has the same bound as a list of inputs.
        raise OpenAIError.of(refusals.array_too_long("input", MAX_INPUTS, len(request.input)))
    if inputs is None:
        raise OpenAIError.of(refusals.invalid_input())
    if "" in inputs:
        path = refusals.input_path(inputs.index(""), len(inputs))
        raise OpenAIError.of(refusals.invalid_input(path))
    if sum(len(entry) for entry in inputs if isinstance(entry, list)) > MAX_INPUT_TOKENS:
        raise OpenAIError.of(refusals.too_many_input_tokens())
    message = EmbedRequest(model=model, dimensions=request.dimensions)
    if request.truncate_prompt_tokens is not None:
        message.truncate_prompt_tokens = request.truncate_prompt_tokens
        if request.truncation_side is not None:
            message.truncation_side = TRUNCATION_SIDES[request.truncation_side]
    _add_inputs(message, inputs)
    listed = isinstance(request.input, list) and not isinstance(request.input[0], int)
    # The service does not know whether its only input came in a list.
    names = {"input": "input[0]"} if listed and len(inputs) == 1 else {}
    return ParsedEmbeddings(model, message, request.encoding_format or "float", names)


def _add_inputs(message: EmbedRequest, inputs: Iterable[Input]) -> None:
    # Filled in place: assigning finished submessages would copy them.
    add = message.inputs.add
    for entry in inputs:
        if isinstance(entry, str):
            add().text = entry
        else:
            add().token_ids.ids.extend(entry)


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw] = []


def _has_messages(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Chat).messages)
    except msgspec.DecodeError:
        return False
