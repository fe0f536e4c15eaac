"""Every parameter does what docs/compatibility.md says, and the page has every parameter."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsStreaming as SdkChatRequest,
)
from openai.types.completion_create_params import (
    CompletionCreateParamsStreaming as SdkCompletionRequest,
)
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.image_generate_params import ImageGenerateParamsStreaming
from openai.types.responses.response_create_params import (
    ResponseCreateParamsStreaming as SdkResponsesRequest,
)

from edge.openai.chat.request import parse_chat_request
from edge.openai.chat.schema import ChatRequest
from edge.openai.completions.request import parse_completion_request
from edge.openai.completions.schema import CompletionRequest
from edge.openai.embeddings.request import ParsedEmbeddings, parse_embeddings_request
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.errors import OpenAIError
from edge.openai.images.request import ParsedImage, parse_image_request
from edge.openai.images.schema import ImageRequest
from edge.openai.responses.request import parse_responses_request
from edge.openai.responses.schema import ResponsesRequest
from edge.openai.tokens.request import parse_detokenization, parse_tokenization
from edge.openai.tokens.response import detokenization, tokenization
from edge.openai.tokens.schema import DetokenizationRequest, TokenizationRequest
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image
from isthmus.v1.models_pb2 import ImageCapabilities
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse
from tests.unit.openai.golden_files import (
    IDENTITY,
    document_bytes,
    embeddings_pieces,
    fields,
    image_document_bytes,
    image_stream_bytes,
    stream_bytes,
)
from tests.unit.openai.parameters import (
    COMPLETIONS,
    DETOKENIZATION,
    EMBEDDINGS,
    HONOURED,
    IMAGES,
    NO_EFFECT,
    REFUSED,
    Json,
    Parameter,
)
from tests.unit.openai.parameters_chat import CHAT, SHARED_WITH_CHATS, TOKENIZATION, is_shared
from tests.unit.openai.parameters_responses import RESPONSES
from tests.unit.openai.parameters_walk import (
    is_known,
    schema_empties,
    schema_literals,
    schema_parameters,
    sdk_literals,
    sdk_parameters,
)

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Endpoint:
    """The types, the parser, the smallest valid body and the tested parameters of an endpoint.

    `sdk` is the openai package's type; None for an endpoint of vLLM's.
    """

    schema: Any
    sdk: Any
    parse: Any
    valid: Json
    parameters: tuple[Parameter, ...]


ENDPOINTS = {
    "Chat completions": Endpoint(
        ChatRequest,
        SdkChatRequest,
        parse_chat_request,
        {"model": "m", "messages": [{"role": "user", "content": "json, please"}]},
        CHAT,
    ),
    "Responses API": Endpoint(
        ResponsesRequest,
        SdkResponsesRequest,
        parse_responses_request,
        {"model": "m", "input": "json, please"},
        RESPONSES,
    ),
    "Completions": Endpoint(
        CompletionRequest,
        SdkCompletionRequest,
        parse_completion_request,
        {"model": "m", "prompt": "hi"},
        COMPLETIONS,
    ),
    "Embeddings": Endpoint(
        EmbeddingsRequest,
        EmbeddingCreateParams,
        parse_embeddings_request,
        {"model": "m", "input": "hi"},
        EMBEDDINGS,
    ),
    "Images": Endpoint(
        ImageRequest,
        ImageGenerateParamsStreaming,
        parse_image_request,
        {"model": "m", "prompt": "hi"},
        IMAGES,
    ),
    "Tokenization": Endpoint(
        TokenizationRequest,
        None,
        parse_tokenization,
        {"model": "m", "messages": [{"role": "user", "content": "json, please"}]},
        TOKENIZATION,
    ),
    "Detokenization": Endpoint(
        DetokenizationRequest,
        None,
        parse_detokenization,
        {"model": "m", "tokens": [1]},
        DETOKENIZATION,
    ),
}
ROWS = [
    pytest.param(endpoint, parameter, id=f"{name}: {parameter.path} {parameter.status}")
    for name, endpoint in ENDPOINTS.items()
    for parameter in endpoint.parameters
]


def with_status(status: str) -> list[Any]:
    return [row for row in ROWS if row.values[1].status == status]


def text_messages(source: int, request: GenerateRequest) -> list[dict[str, Any]]:
    """The messages of one gRPC call, with everything that a parameter may show or hide."""
    token = {"id": 1, "text": "hi", "data": "aGk=", "logprob": -1.0}
    logprobs = {"tokens": [{"token": token, "top": [token]}]}
    call = {"index": 0, "id": "c", "name": "f", "arguments": "{}"}
    last: dict[str, Any] = {
        "deltas": [{"index": 0, "text": "hi", "tool_calls": [call], "logprobs": logprobs}],
        "finishes": [
            {"index": i, "reason": "FINISH_REASON_STOP"} for i in range(request.output.n or 1)
        ],
        "usage": {"prompt_tokens": 3},
    }
    if request.output.HasField("prompt_logprobs"):
        last["prompt_logprobs"] = logprobs
    if request.output.token_ids:
        last["deltas"][0]["token_ids"] = [8]
    first: dict[str, Any] = {"admitted": {"system_fingerprint": "fp", "prompt_tokens": 3}}
    if request.output.prompt_token_ids:
        first["prompt_token_ids"] = [5, 6, 7]
    return [{"source": source, "part": first}, {"source": source, "part": last}]


def image_messages(request: GenerateImageRequest) -> list[GenerateImageResponse]:
    """The messages of an image call: the requested previews, then the images."""
    image = Image(data=b"x", width=request.width, height=request.height, seed=request.seed)
    previews = [GenerateImageResponse(partial_image=image)] * request.partial_images
    images = [GenerateImageResponse(image=image) for _ in range(request.n or 1)]
    for index, message in enumerate(images):
        message.image.index = index
    return previews + images


@dataclass(frozen=True)
class Outcome:
    """The gRPC requests, the priority and the response that a body leads to."""

    calls: list[Any]
    priority: int | None
    answer: str

    def value(self, path: str) -> Any:
        """The value of the first gRPC request at a proto path; None if it is unset."""
        value = self.calls[0]
        for step in path.split("."):
            if isinstance(value, list):
                value = value[int(step)] if int(step) < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return value


def outcome(endpoint: Endpoint, body: Json) -> Outcome:
    call = endpoint.parse(json.dumps(body).encode())
    if isinstance(call, ParsedEmbeddings):
        rows = len(call.request.inputs)
        vectors = struct.pack("<2f", 1, 0) * rows
        response = EmbedResponse(dimensions=2, vectors=vectors, token_counts=[1] * rows)
        answer = b"".join(embeddings_pieces(call, response, call.model))
        return Outcome([fields(call.request)], None, answer.decode())
    if isinstance(call, ParsedImage):
        call.set_model(call.request.model, ImageCapabilities(default_steps=20))
        urls = [f"http://h/{i}" for i in range(call.image_count)] if call.wants_urls else None
        parts = image_messages(call.request)
        answer = (
            image_stream_bytes(call, parts)
            if call.stream
            else image_document_bytes(call, parts, urls)
        )
        return Outcome([fields(call.request)], None, answer.decode())
    if isinstance(call, TokenizeRequest):
        response = TokenizeResponse(count=1, token_ids=[5], token_names=["a"], text="a")
        is_text = endpoint.schema is TokenizationRequest
        names = call.token_names
        answer = tokenization(response, with_names=names) if is_text else detokenization(response)
        return Outcome([fields(call)], None, answer.decode())
    sources = [
        event
        for source, request in enumerate(call.requests)
        for event in text_messages(source, request)
    ]
    if call.stream:
        answer = stream_bytes(call.stream_translator(IDENTITY), sources)
    else:
        answer = document_bytes(call.document_translator(IDENTITY), sources)
    return Outcome([fields(request) for request in call.requests], call.priority, answer.decode())


def container_of(body: Json, path: str) -> tuple[Json, str]:
    """The object that has the parameter, and the parameter's name in it."""
    place: Any = body
    *steps, name = path.split(".")
    for step in steps:
        holder, bracket, tag = step.rstrip("]").partition("[")
        place = place[holder]
        if bracket and isinstance(place, list):
            place = next(
                entry for entry in place if tag in ("", entry.get("role"), entry.get("type"))
            )
    assert isinstance(place, dict)
    return place, name


def with_value(body: Json, path: str, value: Any) -> Json:
    """A copy of the body with another value of the parameter."""
    body = copy.deepcopy(body)
    place, name = container_of(body, path)
    place[name] = value
    return body


def without(body: Json, path: str) -> Json:
    """A copy of the body without the parameter."""
    body = copy.deepcopy(body)
    place, name = container_of(body, path)
    del place[name]
    return body


@pytest.mark.parametrize(("endpoint", "parameter"), with_status(HONOURED))
def test_honoured_parameter_has_its_effect(endpoint: Endpoint, parameter: Parameter) -> None:
    body = endpoint.valid | parameter.sample
    if parameter.param:
        with pytest.raises(OpenAIError) as raised:
            outcome(endpoint, body)
        assert (raised.value.status, raised.value.param) == (400, parameter.param)
        for value in parameter.passes:
            outcome(endpoint, with_value(body, parameter.path, value))
        return
    assert parameter.sets or parameter.shows or parameter.priority is not None
    with_it = outcome(endpoint, body)
    for path, wanted in parameter.sets.items():
        assert with_it.value(path) == wanted
    assert parameter.shows in with_it.answer
    assert with_it.priority == parameter.priority
    try:
        without_it = outcome(endpoint, without(body, parameter.path))
    except OpenAIError:
        return  # The parameter is required, or another one requires it.
    for path, wanted in parameter.sets.items():
        assert without_it.value(path) != wanted
    assert not parameter.shows or parameter.shows not in without_it.answer
    assert parameter.priority is None or without_it.priority is None


@pytest.mark.parametrize(("endpoint", "parameter"), with_status(NO_EFFECT))
def test_parameter_without_effect_changes_nothing(endpoint: Endpoint, parameter: Parameter) -> None:
    body = endpoint.valid | parameter.sample
    assert outcome(endpoint, body) == outcome(endpoint, without(body, parameter.path))


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize(("endpoint", "parameter"), with_status(REFUSED))
def test_refused_parameter_is_named(
    endpoint: Endpoint, parameter: Parameter, lenient: bool
) -> None:
    body = json.dumps(endpoint.valid | parameter.sample).encode()
    with pytest.raises(OpenAIError) as raised:
        endpoint.parse(body, ignore_unknown=lenient)
    assert (raised.value.status, raised.value.param) == (400, parameter.param)
    assert raised.value.code in ("unsupported_parameter", "unsupported_value", "invalid_value")


@pytest.mark.parametrize(("endpoint", "parameter"), with_status(REFUSED))
def test_accepted_value_of_a_refused_parameter_changes_nothing(
    endpoint: Endpoint, parameter: Parameter
) -> None:
    body = endpoint.valid | parameter.sample
    for value in parameter.passes:
        passed = outcome(endpoint, with_value(body, parameter.path, value))
        assert passed == outcome(endpoint, without(body, parameter.path))


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_every_parameter_has_a_row(endpoint: Endpoint) -> None:
    assert {parameter.path for parameter in endpoint.parameters} == set(
        schema_parameters(endpoint.schema)
    )


@pytest.mark.parametrize("name", [name for name, each in ENDPOINTS.items() if each.sdk])
def test_every_parameter_of_the_sdk_is_known(name: str) -> None:
    endpoint = ENDPOINTS[name]
    ours = schema_parameters(endpoint.schema)
    for path, theirs in sdk_parameters(endpoint.sdk).items():
        if (unlisted := unlisted_type(path, ours)) is not None:
            assert endpoint.schema is ResponsesRequest, path
            assert unlisted in UNLISTED, path
            continue
        assert is_known(path, ours), path
        accepted = schema_literals(ours[path]) if path in ours else None
        assert accepted is None or sdk_literals(theirs) <= accepted, path


# Types of items, tools and choices that the schema of responses does not list.


def unlisted_type(path: str, ours: Mapping[str, Any]) -> tuple[str, str] | None:
    """The list and the type of a parameter of such an object; None for other parameters."""
    match = re.match(r"(input|tools|tool_choice)(?:\[(\w*)\]\.|\.(type)$)", path)
    if match is None or (match[2] and any(known.startswith(match[0]) for known in ours)):
        return None
    return match[1], match[2] or ""


UNLISTED = {
    (match[1], match[2] or ""): None
    for path in sdk_parameters(SdkResponsesRequest)
    if (match := re.match(r"(input|tools|tool_choice)(?:\[(\w*)\]\.|\.type$)", path))
    if unlisted_type(path, schema_parameters(ResponsesRequest)) is not None
}
RESPONSES_API = ENDPOINTS["Responses API"]


def test_unlisted_types_are_found() -> None:
    found = {f"{name}[{tag}]" for name, tag in UNLISTED}
    assert {"input[web_search_call]", "tools[mcp]", "tools[]", "tool_choice[mcp]"} <= found
    assert "input[message]" not in found


@pytest.mark.parametrize(("name", "tag"), UNLISTED, ids=lambda value: value or "several")
def test_unlisted_items_and_choices_are_refused_and_tools_are_left_out(name: str, tag: str) -> None:
    entry = {"type": tag or "web_search_preview", "id": "x"}
    if name == "tools":
        body = RESPONSES_API.valid | {"tools": [entry]}
        assert outcome(RESPONSES_API, body) == outcome(RESPONSES_API, RESPONSES_API.valid)
        return
    body = RESPONSES_API.valid | {name: [entry] if name == "input" else entry}
    for lenient in (False, True):
        with pytest.raises(OpenAIError) as raised:
            RESPONSES_API.parse(json.dumps(body).encode(), ignore_unknown=lenient)
        param = "input[0].type" if name == "input" else "tool_choice.type"
        assert (raised.value.status, raised.value.param) == (400, param)


# docs/compatibility.md

_ROW = re.compile(r"^\| `([^|]+)` \| (honoured|no effect|refused) \| ([^|]+) \| (.+) \|$")


@dataclass(frozen=True)
class PageRow:
    """A row of the page."""

    status: str
    becomes: frozenset[str]
    notes: str = field(default="", compare=False)


def page_rows(*sections: str) -> dict[str, PageRow]:
    rows: dict[str, PageRow] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        if title not in sections:
            continue
        for line in text.splitlines():
            if match := _ROW.match(line):
                becomes = frozenset(re.findall("`([^`]+)`", match[3]))
                for path in spelled_out(match[1]):
                    assert path not in rows, f"two rows for {path}"
                    rows[path] = PageRow(match[2], becomes, match[4])
    return rows


def spelled_out(path: str) -> Iterator[str]:
    """Expands `messages[system,user].name` and `messages[system].{name,content}` to two paths."""
    if match := re.search(r"\[([^\]]*,[^\]]*)\]", path):
        for tag in match[1].split(","):
            yield from spelled_out(f"{path[: match.start(1)]}{tag}{path[match.end(1) :]}")
    elif match := re.search(r"\{([^}]*)\}", path):
        for name in match[1].split(","):
            yield from spelled_out(f"{path[: match.start()]}{name}{path[match.end() :]}")
    else:
        yield path


def known_rows(parameters: Iterable[Parameter]) -> dict[str, PageRow]:
    """The rows that the page must have, made from the tested table."""
    by_path: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        by_path.setdefault(parameter.path, []).append(parameter)
    return {
        path: PageRow(
            next(
                status
                for status in (HONOURED, NO_EFFECT, REFUSED)
                if any(parameter.status == status for parameter in same)
            ),
            frozenset(name for parameter in same for name in becomes(parameter)),
        )
        for path, same in by_path.items()
    }


def becomes(parameter: Parameter) -> Iterator[str]:
    """Proto fields of the parameter, without list indexes and map keys."""
    for path in parameter.sets:
        yield re.sub(r"\.\d+", "", path)
    if parameter.priority is not None:
        yield "x-priority"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_page_equals_the_tested_table(name: str) -> None:
    assert rows_of(name) == known_rows(ENDPOINTS[name].parameters)


def rows_of(name: str) -> dict[str, PageRow]:
    if name == "Tokenization":
        # Its section has what is at the top of a body; what is inside has the rows of chats.
        inside = page_rows("Chat completions").items()
        return page_rows(name) | {
            path: row for path, row in inside if is_shared(path) and path not in SHARED_WITH_CHATS
        }
    shared = ["Chat completions and completions"] if "ompletions" in name else []
    return page_rows(name, *shared)


# Null and empty: the rule, and every exception to it


def outcome_or_none(endpoint: Endpoint, body: Json) -> Outcome | None:
    try:
        return outcome(endpoint, body)
    except OpenAIError:
        return None


@pytest.mark.parametrize(("endpoint", "parameter"), ROWS)
def test_null_equals_absence_for_every_optional_parameter(
    endpoint: Endpoint, parameter: Parameter
) -> None:
    body = endpoint.valid | parameter.sample
    absent = outcome_or_none(endpoint, without(body, parameter.path))
    if absent is not None:
        assert outcome(endpoint, with_value(body, parameter.path, None)) == absent


def empty_values(endpoint: Endpoint, path: str) -> list[Any]:
    """The empty lists and objects that the parameter's type allows."""
    return schema_empties(SCHEMA_PARAMETERS[endpoint.schema][path])


SCHEMA_PARAMETERS = {
    endpoint.schema: schema_parameters(endpoint.schema) for endpoint in ENDPOINTS.values()
}
# Parameters that ask for something although they are empty.
EMPTY_ASKS = {
    "allowed_token_ids": "no token is allowed",
    "structured_outputs.choice": "no text is one of no choices",
    "guided_choice": "no text is one of no choices",
}


@pytest.mark.parametrize(("endpoint", "parameter"), ROWS)
def test_empty_list_or_object_equals_absence_for_every_optional_parameter(
    endpoint: Endpoint, parameter: Parameter
) -> None:
    body = endpoint.valid | parameter.sample
    absent = outcome_or_none(endpoint, without(body, parameter.path))
    if absent is None:
        return
    for empty in empty_values(endpoint, parameter.path):
        given = with_value(body, parameter.path, empty)
        if parameter.path in EMPTY_ASKS:
            with pytest.raises(OpenAIError, match="empty array"):
                outcome(endpoint, given)
        else:
            assert outcome(endpoint, given) == absent


def test_exceptions_of_the_rule_are_parameters() -> None:
    assert EMPTY_ASKS.keys() <= SCHEMA_PARAMETERS[ChatRequest].keys()
