"""Reads tests/golden, whose README describes the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from edge.anthropic.request import parse_messages_request
from edge.exchange.machine import Exchange
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.embeddings.request import ParsedEmbeddings
from edge.openai.embeddings.response import EmbeddingsResponse
from edge.openai.images.request import ParsedImage
from edge.openai.images.response import ImageResponse
from edge.openai.images.stream import ImageStream
from edge.openai.pieces import Output, encoded
from edge.openai.responses.request import parse_responses_request
from edge.openai.text.request import ParsedText
from edge.openai.text.translator import Identity
from edge.openai.translator import Document, StreamTranslator
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.usage_pb2 import Admitted

GOLDEN = Path(__file__).parents[2] / "golden"
OK = Status()
IDENTITY = Identity("id-1", 1_700_000_000)
PARSERS: dict[str, Callable[..., ParsedText]] = {
    "chat": parse_chat_request,
    "completions": parse_completion_request,
    "messages": parse_messages_request,
    "responses": parse_responses_request,
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


def parse(folder: str, case: Case) -> ParsedText:
    """Parses the request of a case."""
    body = body_of(case)
    if folder == "responses":
        # The response repeats the schemas of its request as they are.
        body = msgspec.json.format(body, indent=-1)
    return PARSERS[folder](body, ignore_unknown=case.get("ignore_unknown", False))


def message(value: Any, type_: type[M]) -> M:
    """Builds a proto message from its JSON."""
    return json_format.ParseDict(value, type_())


def fields(value: Message) -> Any:
    """A proto message as JSON with proto field names."""
    return json_format.MessageToDict(value, preserving_proto_field_name=True)


def stream_bytes(translator: StreamTranslator[GenerateResponse], events: list[Case]) -> bytes:
    """The event stream that an exchange makes of the sources' events."""
    admissions = [event for event in events if "admitted" in event]
    exchange = Exchange(translator, 1 + max((e.get("source", 0) for e in events), default=0))
    sent = [feed(exchange, event) for event in admissions]
    sent += [feed(exchange, event) for event in events if "admitted" not in event]
    sent += [source.end(OK) for source in exchange.sources]
    return everything(sent)


def feed(exchange: Exchange[GenerateResponse], event: Case) -> Output:
    """Gives one event of a golden file to its source."""
    source = exchange.sources[event.get("source", 0)]
    if "text" in event:
        return source.text(event["text"])
    if "admitted" in event:
        return source.part(GenerateResponse(admitted=message(event["admitted"], Admitted)))
    return source.part(message(event["part"], GenerateResponse)) if "part" in event else b""


def everything(sent: Iterable[Output]) -> bytes:
    """Joins the outputs of an exchange into bytes."""
    whole = reduce(add, sent, b"")
    return whole if isinstance(whole, bytes) else b"".join(encoded(whole.pieces))


def document_bytes(translator: Document[GenerateResponse], events: list[Case]) -> bytes:
    """The JSON document that an exchange collects from the sources' events."""
    exchange = Exchange(translator, 1 + max((e.get("source", 0) for e in events), default=0))
    for event in events:
        feed(exchange, event)
    return translator.document()


def image_document_bytes(
    parsed: ParsedImage, parts: Iterable[GenerateImageResponse], urls: Sequence[str] | None = None
) -> bytes:
    """The JSON document made of an image call's messages."""
    translator = ImageResponse(parsed, IDENTITY.created)
    (source,) = Exchange(translator).sources
    for part in parts:
        source.part(part)
    return b"".join(encoded(translator.document(urls)))


def image_stream_bytes(parsed: ParsedImage, parts: Iterable[GenerateImageResponse]) -> bytes:
    """The event stream made of an image call's messages."""
    (source,) = Exchange(ImageStream(parsed, IDENTITY.created)).sources
    admission = GenerateImageResponse(admitted=Admitted())
    return everything([*(source.part(part) for part in (admission, *parts)), source.end(OK)])


def embeddings_pieces(
    parsed: ParsedEmbeddings, response: EmbedResponse, model: str
) -> Iterator[bytes]:
    """The pieces of the JSON document made of an embedding call's response."""
    translator = EmbeddingsResponse(parsed, model)
    Exchange(translator).sources[0].part(response)
    return translator.document()


def expected_named_stream(events: list[Any]) -> bytes:
    """The bytes of an SSE stream whose events are named by their `type`; strings have no name."""
    return b"".join(
        b"data: %b\n\n" % event.encode()
        if isinstance(event, str)
        else b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )


def expected_stream(events: list[Any]) -> bytes:
    """The bytes of an SSE stream; strings are sent as they are, objects as JSON."""
    lines = [e.encode() if isinstance(e, str) else msgspec.json.encode(e) for e in events]
    return b"".join(b"data: %b\n\n" % line for line in lines)


def events_of(stream: bytes) -> list[Any]:
    """The events of a stream as JSON values; [DONE] stays a string.

    The name of an event, if it has one, is the `type` of its data.
    """
    assert stream.endswith(b"\n\n")
    events = []
    for event in stream.decode().split("\n\n")[:-1]:
        *names, line = event.split("\n")
        assert line.startswith("data: "), event
        data = line.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
        assert not names or names == [f"event: {events[-1]['type']}"], event
    return events
