"""Reads tests/golden; its README says what the files hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from edge.openai.chat.request import ParsedChat, parse_chat_request
from edge.openai.completions.request import ParsedCompletion, parse_completion_request
from edge.openai.images.request import ParsedImage
from edge.openai.images.response import ImageResponse
from edge.openai.images.stream import ImageStream
from edge.openai.pieces import encoded
from edge.openai.text.translator import Identity, ResponseTranslator, StreamTranslator
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.usage_pb2 import Admitted

GOLDEN = Path(__file__).parents[2] / "golden"
IDENTITY = Identity("id-1", 1_700_000_000)
PARSERS: dict[str, Callable[..., ParsedChat | ParsedCompletion]] = {
    "chat": parse_chat_request,
    "completions": parse_completion_request,
}

M = TypeVar("M", bound=Message)
Case = dict[str, Any]


def cases(*folders: str) -> list[Any]:
    """One parameter a file: folder and content."""
    found = [
        pytest.param(folder, json.loads(path.read_text()), id=f"{folder}/{path.stem}")
        for folder in folders
        for path in sorted((GOLDEN / folder).glob("*.json"))
    ]
    assert found, folders
    return found


def body_of(case: Case) -> bytes:
    """The request's bytes."""
    if "request_text" in case:
        return str(case["request_text"]).encode()
    return json.dumps(case["request"]).encode()


def parse(folder: str, case: Case) -> ParsedChat | ParsedCompletion:
    """The call that a case's request makes."""
    return PARSERS[folder](body_of(case), ignore_unknown=case.get("ignore_unknown", False))


def message(value: Any, type_: type[M]) -> M:
    """A message from its JSON."""
    return json_format.ParseDict(value, type_())


def fields(value: Message) -> Any:
    """A message as JSON with proto field names."""
    return json_format.MessageToDict(value, preserving_proto_field_name=True)


def stream_bytes(translator: StreamTranslator, sources: list[Case]) -> bytes:
    """The whole event stream of what the sources say."""
    sent = []
    admissions = [said for said in sources if "admitted" in said]
    for said in admissions:
        translator.admit(said.get("source", 0), message(said["admitted"], Admitted))
    sent.append(translator.start())
    for said in sources:
        source = said.get("source", 0)
        if "text" in said:
            sent.append(translator.text(source, said["text"]))
        elif "part" in said:
            sent.append(translator.part(source, message(said["part"], GenerateResponse)))
    sent.append(translator.end())
    return b"".join(sent)


def answer_bytes(translator: ResponseTranslator, sources: list[Case]) -> bytes:
    """The document of what the sources say."""
    for said in sources:
        source = said.get("source", 0)
        if "admitted" in said:
            translator.admit(source, message(said["admitted"], Admitted))
        elif "text" in said:
            translator.text(source, said["text"])
        elif "part" in said:
            translator.part(source, message(said["part"], GenerateResponse))
    return translator.result()


def image_answer_bytes(
    call: ParsedImage, parts: Iterable[GenerateImageResponse], urls: Sequence[str] | None = None
) -> bytes:
    """The document of what the service says about pictures."""
    answer = ImageResponse(call, IDENTITY.created)
    for part in parts:
        answer.part(part)
    return b"".join(encoded(answer.document(urls)))


def image_stream_bytes(call: ParsedImage, parts: Iterable[GenerateImageResponse]) -> bytes:
    """The whole event stream of what the service says about pictures."""
    stream = ImageStream(call, IDENTITY.created)
    pieces = [piece for part in parts for piece in stream.part(part)]
    return b"".join(encoded(pieces + stream.end() + stream.end()))


def expected_named_stream(events: list[Any]) -> bytes:
    """The bytes of expected events that are named by their type."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )


def expected_stream(events: list[Any]) -> bytes:
    """The bytes of expected events."""
    lines = [e.encode() if isinstance(e, str) else msgspec.json.encode(e) for e in events]
    return b"".join(b"data: %b\n\n" % line for line in lines)


def events_of(stream: bytes) -> list[Any]:
    """The events of a stream, [DONE] as text."""
    assert stream.endswith(b"\n\n")
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        assert event.startswith("data: "), event
        assert "\n" not in event, event
        data = event.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events
