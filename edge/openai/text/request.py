"""Checks and conversions that the requests for text share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import compress, repeat
from operator import attrgetter, is_not
from typing import Final

from msgspec import Struct

from contract import refusals
from contract.parameters import PARAMETERS
from contract.refusals import shown
from edge.openai import errors
from edge.openai.decoding.decoder import is_given
from edge.openai.decoding.types import UINT32_MAX, AnyJson
from edge.openai.errors import OpenAIError
from edge.openai.text.json_schema import read_object, strict_fault
from edge.openai.text.schema import (
    GenerationRequest,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    StreamOptions,
)
from edge.openai.text.translator import Identity
from edge.openai.translator import Document, StreamTranslator
from isthmus.v1.generate_pb2 import (
    Choices,
    Constraint,
    GenerateRequest,
    GenerateResponse,
    Stopping,
)

_values_of: Final = attrgetter(*(parameter.name for parameter in PARAMETERS))
# The values in most requests: one comparison replaces one for each parameter.
_ALL_ABSENT: Final = (None,) * len(PARAMETERS)
_constraints_of: Final = attrgetter(
    "structured_outputs", "guided_json", "guided_choice", "guided_regex", "guided_grammar"
)
# The constraints of most requests.
_NO_CONSTRAINTS: Final = _constraints_of(GenerationRequest())


class ParsedText(Struct, frozen=True, gc=False, kw_only=True):
    """A checked request for text.

    Attributes:
        model: The requested name, which the response echoes.
        stream: Whether the response is an event stream.
        priority: Lower runs sooner; None if the request has none.
        affinity: What requests of one conversation have in common, if the client says it; else "".
        requests: Requests to the inference service: one, or one for each prompt, in order.
        other_names: The service's parameter names, each with the name that the client used; for
            errors.
        list_name: The parameter whose list has an entry for each request; "" if there is none.
    """

    model: str
    stream: bool
    priority: int | None
    affinity: str
    requests: list[GenerateRequest]
    other_names: Mapping[str, str]
    list_name: str = ""
    stream_translator: Callable[[Identity], StreamTranslator[GenerateResponse]]
    document_translator: Callable[[Identity], Document[GenerateResponse]]


def check_request(request: GenerationRequest) -> None:
    """Checks the rules that chat and completions share.

    Raises:
        OpenAIError: 400.
    """
    if not request.model:
        raise OpenAIError.of(refusals.missing_model())
    if _wants_more(request.stream_options) and not request.stream:
        raise errors.invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        )
    if request.structured_outputs is not None:
        request.structured_outputs.check_refused("structured_outputs.")
    if request.prompt_logprobs is not None and request.stream:
        raise errors.invalid_request(
            "The 'prompt_logprobs' parameter is not allowed when 'stream' is enabled.",
            "prompt_logprobs",
        )


def _wants_more(options: StreamOptions | None) -> bool:
    """Whether the options ask for anything."""
    return options is not None and bool(options.include_usage or options.include_obfuscation)


def wants_usage(request: GenerationRequest) -> bool:
    """Whether the stream ends with a usage chunk."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def wants_running_usage(request: GenerationRequest) -> bool:
    """Whether each chunk of the stream has the usage so far."""
    options = request.stream_options
    return options is not None and bool(options.continuous_usage_stats)


def generate_request(request: GenerationRequest, max_tokens: int | None) -> GenerateRequest:
    """The GenerateRequest, without its input and the endpoint's own output options.

    Raises:
        OpenAIError: 400.
    """
    message = GenerateRequest(model=request.model)
    _fill_parameters(request, message)
    if request.logit_bias:
        message.sampling.logit_bias.update(_logit_bias(request.logit_bias))
    if max_tokens is not None:
        message.stopping.max_tokens = max_tokens
    if request.stop is not None and request.stop != []:
        _fill_stop(request.stop, message.stopping)
    if request.n is not None:
        message.output.n = request.n
    if request.prompt_logprobs is not None:
        message.output.prompt_logprobs = request.prompt_logprobs
    if request.return_token_ids:
        message.output.token_ids = message.output.prompt_token_ids = True
    elif wants_running_usage(request):
        # The edge counts the tokens of each chunk by their ids.
        message.output.token_ids = True
    if not request.stream:
        message.output.single_message = True
    if constraint := _constraint(request):
        message.constraint.CopyFrom(constraint)
    return message


def _fill_parameters(request: GenerationRequest, message: GenerateRequest) -> None:
    """Sets the fields of the parameters that a request has."""
    values = _values_of(request)
    if values == _ALL_ABSENT:
        return
    given = map(is_not, values, repeat(None))
    for parameter, value in compress(zip(PARAMETERS, values, strict=True), given):
        if value != []:
            parameter.set(message, value)


def _logit_bias(biases: Mapping[str, float]) -> dict[int, float]:
    for key in biases:
        if not (key.isascii() and key.isdigit()):
            raise errors.invalid_request(
                f"Invalid key in 'logit_bias': {shown(key)}. You should only be submitting "
                "non-negative integers.",
                "logit_bias",
            )
        # A number of more than ten digits exceeds the limit and is not parsed.
        if len(key) > 10 or int(key) > UINT32_MAX:
            raise OpenAIError.of(refusals.biased_token_too_large(shown(key), UINT32_MAX))
    return {int(key): bias for key, bias in biases.items()}


def _fill_stop(stop: str | list[str], out: Stopping) -> None:
    out.strings.extend([stop] if isinstance(stop, str) else stop)
    if "" in out.strings:
        raise OpenAIError.of(refusals.empty_string("stop"))


def _constraint(request: GenerationRequest) -> Constraint | None:
    """The one constraint of `response_format`, `structured_outputs` and `guided_*`, if any."""
    constraints = _constraints_of(request)
    if request.response_format is None and constraints == _NO_CONSTRAINTS:
        return None
    outputs, *guided = constraints
    found: list[tuple[str, Constraint]] = []
    match request.response_format:
        case JsonSchemaFormat(json_schema=schema):
            found.append(("response_format", Constraint(json_schema=_schema_text(schema))))
        case JsonObjectFormat():
            found.append(("response_format", Constraint(json_object=True)))
    if outputs is not None:
        if outputs.json_object:
            found.append(("structured_outputs", Constraint(json_object=True)))
        found += _rules(
            "structured_outputs.", outputs.json, outputs.choice, outputs.regex, outputs.grammar
        )
    found += _rules("guided_", *guided)
    if len(found) > 1:
        raise errors.invalid_request(
            "Only one constraint of the output can be given: 'response_format' or one member of "
            "'structured_outputs' or 'guided_...'.",
            found[1][0],
        )
    return found[0][1] if found else None


def other_names(request: GenerationRequest) -> dict[str, str]:
    """The service's names of parameters, each with the name that the client used.

    The contract has one field for each constraint; a client has up to three ways to set it.
    """
    names: dict[str, str] = {}
    if _constraints_of(request) == _NO_CONSTRAINTS:
        return names
    outputs = request.structured_outputs
    sent = "structured_outputs.json" if outputs and is_given(outputs.json) else None
    if sent := "guided_json" if is_given(request.guided_json) else sent:
        names = dict.fromkeys(("response_format.json_schema.schema", "response_format"), sent)
    for rule in ("choice", "regex", "grammar"):
        if getattr(request, f"guided_{rule}") is not None:
            names[f"structured_outputs.{rule}"] = f"guided_{rule}"
    return names


def _rules(
    prefix: str, schema: AnyJson, choices: list[str] | None, regex: str | None, grammar: str | None
) -> list[tuple[str, Constraint]]:
    found: list[tuple[str, Constraint]] = []
    if is_given(schema):
        text = read_object(schema, prefix + "json", text_allowed=True).text
        found.append((prefix + "json", Constraint(json_schema=text)))
    if choices is not None:
        found.append((prefix + "choice", Constraint(choices=Choices(values=choices))))
    if regex is not None:
        found.append((prefix + "regex", Constraint(regex=regex)))
    if grammar is not None:
        found.append((prefix + "grammar", Constraint(grammar=grammar)))
    return found


def _schema_text(schema: JsonSchema) -> str:
    param = "response_format.json_schema.schema"
    read = read_object(schema.schema, param)
    if schema.strict and (fault := strict_fault(read.value)):
        raise errors.invalid_request(
            f"Invalid schema for response_format '{schema.name}': {fault}", "response_format"
        )
    return read.text
