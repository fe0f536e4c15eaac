"""Every member does what the page says, and every member is on it."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Iterable, Iterator
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

from edge.openai.chat.request import parse_chat_request
from edge.openai.chat.schema import ChatRequest
from edge.openai.completions.request import parse_completion_request
from edge.openai.completions.schema import CompletionRequest
from edge.openai.embeddings.request import ParsedEmbeddings, parse_embeddings_request
from edge.openai.embeddings.schema import EmbeddingsRequest
from edge.openai.errors import OpenAIError
from edge.openai.images.request import ParsedImage, parse_image_request
from edge.openai.images.schema import ImageRequest
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image
from isthmus.v1.models_pb2 import ImageCapabilities
from tests.unit.openai.golden_files import (
    IDENTITY,
    document_bytes,
    embeddings_pieces,
    fields,
    image_document_bytes,
    image_stream_bytes,
    stream_bytes,
)
from tests.unit.openai.members import (
    COMPLETIONS,
    EMBEDDINGS,
    HONOURED,
    IMAGES,
    NO_EFFECT,
    REFUSED,
    Json,
    Member,
)
from tests.unit.openai.members_chat import CHAT
from tests.unit.openai.members_walk import (
    is_known,
    schema_literals,
    schema_members,
    sdk_literals,
    sdk_members,
)

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Endpoint:
    """What is known of an endpoint."""

    schema: Any
    sdk: Any
    parse: Any
    valid: Json
    members: tuple[Member, ...]


ENDPOINTS = {
    "Chat completions": Endpoint(
        ChatRequest,
        SdkChatRequest,
        parse_chat_request,
        {"model": "m", "messages": [{"role": "user", "content": "json, please"}]},
        CHAT,
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
}
ROWS = [
    pytest.param(endpoint, member, id=f"{name}: {member.path} {member.status}")
    for name, endpoint in ENDPOINTS.items()
    for member in endpoint.members
]


def with_status(status: str) -> list[Any]:
    return [row for row in ROWS if row.values[1].status == status]


def said(source: int, request: GenerateRequest) -> list[dict[str, Any]]:
    """An answer with everything in it that a member may show or hide."""
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
    return [
        {"source": source, "admitted": {"system_fingerprint": "fp"}},
        {"source": source, "part": last},
    ]


def drawn(request: GenerateImageRequest) -> list[GenerateImageResponse]:
    """The pictures of a request, with as many previews as it wants."""
    image = Image(data=b"x", width=request.width, height=request.height, seed=request.seed)
    previews = [GenerateImageResponse(partial_image=image)] * request.partial_images
    pictures = [GenerateImageResponse(image=image) for _ in range(request.n or 1)]
    for index, picture in enumerate(pictures):
        picture.image.index = index
    return previews + pictures


@dataclass(frozen=True)
class Outcome:
    """All that a body leads to."""

    calls: list[Any]
    priority: int | None
    answer: str

    def value(self, path: str) -> Any:
        """What the first call holds at a proto path; None where it is unset."""
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
        parts = drawn(call.request)
        answer = (
            image_stream_bytes(call, parts)
            if call.stream
            else image_document_bytes(call, parts, urls)
        )
        return Outcome([fields(call.request)], None, answer.decode())
    sources = [
        event for source, request in enumerate(call.requests) for event in said(source, request)
    ]
    if call.stream:
        answer = stream_bytes(call.stream_translator(IDENTITY), sources)
    else:
        answer = document_bytes(call.document_translator(IDENTITY), sources)
    return Outcome([fields(request) for request in call.requests], call.priority, answer.decode())


def around(body: Json, path: str) -> tuple[Json, str]:
    """The object that holds a member, and the member's name there."""
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
    """The body with another value of a member."""
    body = copy.deepcopy(body)
    place, name = around(body, path)
    place[name] = value
    return body


def without(body: Json, path: str) -> Json:
    """The body without a member."""
    body = copy.deepcopy(body)
    place, name = around(body, path)
    del place[name]
    return body


@pytest.mark.parametrize(("endpoint", "member"), with_status(HONOURED))
def test_honoured(endpoint: Endpoint, member: Member) -> None:
    body = endpoint.valid | member.sample
    if member.param:
        with pytest.raises(OpenAIError) as raised:
            outcome(endpoint, body)
        assert (raised.value.status, raised.value.param) == (400, member.param)
        for value in member.passes:
            outcome(endpoint, with_value(body, member.path, value))
        return
    assert member.sets or member.shows or member.priority is not None
    with_it = outcome(endpoint, body)
    for path, wanted in member.sets.items():
        assert with_it.value(path) == wanted
    assert member.shows in with_it.answer
    assert with_it.priority == member.priority
    try:
        without_it = outcome(endpoint, without(body, member.path))
    except OpenAIError:
        return  # It is required, or what stands beside it has no meaning alone.
    for path, wanted in member.sets.items():
        assert without_it.value(path) != wanted
    assert not member.shows or member.shows not in without_it.answer
    assert member.priority is None or without_it.priority is None


@pytest.mark.parametrize(("endpoint", "member"), with_status(NO_EFFECT))
def test_advice_changes_nothing(endpoint: Endpoint, member: Member) -> None:
    body = endpoint.valid | member.sample
    assert outcome(endpoint, body) == outcome(endpoint, without(body, member.path))


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize(("endpoint", "member"), with_status(REFUSED))
def test_refused_by_name(endpoint: Endpoint, member: Member, lenient: bool) -> None:
    body = json.dumps(endpoint.valid | member.sample).encode()
    with pytest.raises(OpenAIError) as raised:
        endpoint.parse(body, ignore_unknown=lenient)
    assert (raised.value.status, raised.value.param) == (400, member.param)
    assert raised.value.code in ("unsupported_parameter", "unsupported_value", "invalid_value")


@pytest.mark.parametrize(("endpoint", "member"), with_status(REFUSED))
def test_what_asks_for_nothing_passes(endpoint: Endpoint, member: Member) -> None:
    body = endpoint.valid | member.sample
    for value in member.passes:
        passed = outcome(endpoint, with_value(body, member.path, value))
        assert passed == outcome(endpoint, without(body, member.path))


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_every_member_has_a_row(endpoint: Endpoint) -> None:
    assert {member.path for member in endpoint.members} == set(schema_members(endpoint.schema))


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_every_member_of_the_sdk_is_known(endpoint: Endpoint) -> None:
    ours = schema_members(endpoint.schema)
    for path, theirs in sdk_members(endpoint.sdk).items():
        assert is_known(path, ours), path
        accepted = schema_literals(ours[path]) if path in ours else None
        assert accepted is None or sdk_literals(theirs) <= accepted, path


# The page

_ROW = re.compile(r"^\| `([^|]+)` \| (honoured|no effect|refused) \| ([^|]+) \| (.+) \|$")


@dataclass(frozen=True)
class PageRow:
    """What the page says of a member."""

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
    """`messages[system,user].name` is two members."""
    match = re.search(r"\[([^\]]*,[^\]]*)\]", path)
    if match is None:
        yield path
        return
    for tag in match[1].split(","):
        yield from spelled_out(f"{path[: match.start(1)]}{tag.strip()}{path[match.end(1) :]}")


def known_rows(members: Iterable[Member]) -> dict[str, PageRow]:
    """The same, from the table that the tests above hold to be true."""
    by_path: dict[str, list[Member]] = {}
    for member in members:
        by_path.setdefault(member.path, []).append(member)
    return {
        path: PageRow(
            next(
                status
                for status in (HONOURED, NO_EFFECT, REFUSED)
                if any(member.status == status for member in same)
            ),
            frozenset(name for member in same for name in becomes(member)),
        )
        for path, same in by_path.items()
    }


def becomes(member: Member) -> Iterator[str]:
    """Names of fields, without the places in lists and maps."""
    for path in member.sets:
        yield re.sub(r"\.\d+", "", path)
    if member.priority is not None:
        yield "x-priority"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_page_is_complete_and_true(name: str) -> None:
    assert rows_of(name) == known_rows(ENDPOINTS[name].members)


def rows_of(name: str) -> dict[str, PageRow]:
    shared = ["Chat completions and completions"] if "ompletions" in name else []
    return page_rows(name, *shared)


def accepted(endpoint: Endpoint, body: Json) -> bool:
    try:
        endpoint.parse(json.dumps(body).encode())
    except OpenAIError:
        return False
    return True


@pytest.mark.parametrize(("endpoint", "member"), ROWS)
def test_null_is_absence_unless_the_page_says_otherwise(endpoint: Endpoint, member: Member) -> None:
    body = endpoint.valid | member.sample
    if accepted(endpoint, without(body, member.path)):
        nullable = accepted(endpoint, with_value(body, member.path, None))
        notes = PAGE_NOTES[endpoint.schema, member.path]
        assert nullable != ("not nullable" in notes.lower())


PAGE_NOTES = {
    (endpoint.schema, path): row.notes
    for name, endpoint in ENDPOINTS.items()
    for path, row in rows_of(name).items()
}
