"""Reads tests/golden, whose README describes the files."""

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
    """One pytest parameter for each file: (folder, content)."""
    found = [
        pytest.param(folder, json.loads(path.read_text()), id=f"{folder}/{path.stem}")
        for folder in folders
        for path in sorted((GOLDEN / folder).glob("*.json"))
    ]
    assert found, folders
    return found


def body_of(case: Case) -> bytes:
    """The request body as bytes."""
    if "request_text" in case:
        return str(case["request_text"]).encode()
    return json.dumps(case["request"]).encode()


def parse(folder: str, case: Case) -> ParsedChat | ParsedCompletion:
    """Parses the request of a case."""
    return PARSERS[folder](body_of(case), ignore_unknown=case.get("ignore_unknown", False))


def message(value: Any, type_: type[M]) -> M:
    """Builds a proto message from its JSON."""
    return json_format.ParseDict(value, type_())


def fields(value: Message) -> Any:
    """A proto message as JSON with proto field names."""
    return json_format.MessageToDict(value, preserving_proto_field_name=True)


def stream_bytes(translator: StreamTranslator, sources: list[Case]) -> bytes:
    """The event stream that the translator makes of the messages in `sources`."""
    sent = []
    admissions = [item for item in sources if "admitted" in item]
    for item in admissions:
        translator.admit(item.get("source", 0), message(item["admitted"], Admitted))
    sent.append(translator.start())
    for item in sources:
        source = item.get("source", 0)
        if "text" in item:
            sent.append(translator.text(source, item["text"]))
        elif "part" in item:
            sent.append(translator.part(source, message(item["part"], GenerateResponse)))
    sent.append(translator.end())
    return b"".join(sent)


def answer_bytes(translator: ResponseTranslator, sources: list[Case]) -> bytes:
    """The JSON document that the translator makes of the messages in `sources`."""
    for item in sources:
        source = item.get("source", 0)
        if "admitted" in item:
            translator.admit(source, message(item["admitted"], Admitted))
        elif "text" in item:
            translator.text(source, item["text"])
        elif "part" in item:
            translator.part(source, message(item["part"], GenerateResponse))
    return translator.result()


def image_answer_bytes(
    call: ParsedImage, parts: Iterable[GenerateImageResponse], urls: Sequence[str] | None = None
) -> bytes:
    """The JSON document made of an image call's messages."""
    answer = ImageResponse(call, IDENTITY.created)
    for part in parts:
        answer.part(part)
    return b"".join(encoded(answer.document(urls)))


def image_stream_bytes(call: ParsedImage, parts: Iterable[GenerateImageResponse]) -> bytes:
    """The event stream made of an image call's messages."""
    stream = ImageStream(call, IDENTITY.created)
    pieces = [piece for part in parts for piece in stream.part(part)]
    return b"".join(encoded(pieces + stream.end() + stream.end()))


def expected_named_stream(events: list[Any]) -> bytes:
    """The bytes of an SSE stream whose events are named by their `type`."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )


def expected_stream(events: list[Any]) -> bytes:
    """The bytes of an SSE stream; strings are sent as they are, objects as JSON."""
    lines = [e.encode() if isinstance(e, str) else msgspec.json.encode(e) for e in events]
    return b"".join(b"data: %b\n\n" % line for line in lines)


def events_of(stream: bytes) -> list[Any]:
    """The events of a stream as JSON values; [DONE] stays a string."""
    assert stream.endswith(b"\n\n")
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        assert event.startswith("data: "), event
        assert "\n" not in event, event
        data = event.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events
