"""Any bytes are parsed quickly or refused quickly with a 400; no other exception is raised.

A failing input is written to tests/corpus and becomes a test of every later run.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from edge.anthropic.request import parse_messages_request
from edge.exchange.machine import Exchange
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.embeddings.request import ParsedEmbeddings, parse_embeddings_request
from edge.openai.errors import OpenAIError
from edge.openai.images.request import ParsedImage, parse_image_request
from edge.openai.images.response import ImageResponse
from edge.openai.images.stream import ImageStream
from edge.openai.pieces import encoded
from edge.openai.responses.request import parse_responses_request
from edge.openai.text.request import ParsedText
from edge.openai.tokens.request import parse_detokenization, parse_tokenization
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from tests.unit.openai.golden_files import (
    GOLDEN,
    IDENTITY,
    OK,
    Case,
    body_of,
    cases,
    events_of,
    everything,
    message,
    parse,
)


@dataclass(frozen=True)
class ParsedTokens:
    """A checked request for tokens, as a ParsedImage has it."""

    request: TokenizeRequest


def tokens(parse_body: Callable[..., TokenizeRequest]) -> Callable[..., ParsedTokens]:
    return lambda body, **options: ParsedTokens(parse_body(body, "default-model", **options))


Parsed = ParsedText | ParsedEmbeddings | ParsedImage | ParsedTokens
Parse = Callable[..., Parsed]
PARSERS: dict[str, Parse] = {
    "chat": parse_chat_request,
    "responses": parse_responses_request,
    "completions": parse_completion_request,
    "embeddings": parse_embeddings_request,
    "images": parse_image_request,
    "messages": parse_messages_request,
    "tokenize": tokens(parse_tokenization),
    "detokenize": tokens(parse_detokenization),
}
CORPUS = Path(__file__).parents[2] / "corpus"
INPUTS = 6500
RANDOM_INPUTS = 600
# CPU time for one megabyte. The aim is 50 ms; the factor of five allows for a busy machine.
SLOWEST_SECONDS = 0.25
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**40, -(10**40), 0.5, -0.0, 1e308,
    1e-320, "", "x", "\x00", "\ufeff", "é", "😀", "json", "[", "{}", "[{}]", "data:,", [], [[]], {},
    [None], [1], ["x"], [[1]], {"": None}, {"type": "text"}, {"type": "function"}, {"role": "user"},
    "x" * 5000, list(range(300)),
]  # fmt: skip
ODD_NAMES = ["foo", "", "x" * 300, "type", "role", "\ud800", "cache_control", "tool_calls",
             "tool_call_id", "reasoning_content", "_meta", "tool_use_id", "thinking"]  # fmt: skip
BYTES = [b"", b"\xff", b"\x00", b"\\ud800", b'"', b"{", b"]", b",", b"NaN", b"1e999", b"9" * 5000]


def valid_seeds(endpoint: str) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted((GOLDEN / endpoint).glob("*.json"))]
    return [case["request"] for case in found if "request" in case]


def seeds(endpoint: str) -> list[dict[str, Any]]:
    rows = json.loads((GOLDEN / "errors" / f"{endpoint}.json").read_text())
    valid = valid_seeds(endpoint)
    return valid + [valid[0] | row["with"] for row in rows if "with" in row]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) for every value inside `value`."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutated(dice: random.Random, seed: Any, others: list[Any]) -> bytes:
    value = json.loads(json.dumps(seed))
    for _ in range(dice.randint(1, 3)):
        found = list(places(value))
        if not found:
            break
        container, key = dice.choice(found)
        match dice.randrange(5):
            case 0:
                del container[key]
            case 1 | 2:
                container[key] = deepcopy(dice.choice(ODD_VALUES))
            case 3:
                donor, name = dice.choice(list(places(dice.choice(others))))
                container[key] = deepcopy(donor[name])
            case 4 if isinstance(container, dict):
                container[dice.choice(ODD_NAMES)] = 1
    body = json.dumps(value).encode()
    if dice.random() < 0.3:
        place = dice.randrange(len(body))
        body = body[:place] + dice.choice(BYTES) + body[place + dice.randint(0, 3) :]
    return body


def check(endpoint: str, body: bytes) -> bool:
    """Returns whether the body was accepted; stores a body that is handled wrongly."""
    try:
        return accepts(PARSERS[endpoint], body)
    except Exception:
        folder = CORPUS / endpoint
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{hashlib.sha256(body).hexdigest()[:16]}.txt").write_bytes(body)
        raise


def accepts(parse: Parse, body: bytes) -> bool:
    """Parses the body strictly and leniently, within the time limit; True if either accepts it."""
    accepted = False
    start = time.process_time()
    for ignore_unknown in (False, True):
        try:
            call = parse(body, ignore_unknown=ignore_unknown)
        except OpenAIError as error:
            refused = error
        else:
            accepted = True
            for request in call.requests if isinstance(call, ParsedText) else [call.request]:
                request.SerializeToString()
            continue
        assert refused.status == 400
        assert set(json.loads(refused.body())["error"]) == {"message", "type", "param", "code"}
        assert len(refused.body()) < 2048
    assert time.process_time() - start < 2 * SLOWEST_SECONDS
    return accepted


@pytest.mark.parametrize("endpoint", PARSERS)
def test_mutated_requests_are_accepted_or_refused(endpoint: str) -> None:
    dice = random.Random(f"isthmus {endpoint}")
    corpus = seeds(endpoint)
    accepted = sum(
        check(endpoint, mutated(dice, dice.choice(corpus), corpus)) for _ in range(INPUTS)
    )
    # Between 2 % and 98 % are accepted, so the mutations reach past the first check.
    assert INPUTS // 50 < accepted < INPUTS * 49 // 50


@pytest.mark.parametrize("endpoint", PARSERS)
def test_random_bytes_are_refused(endpoint: str) -> None:
    dice = random.Random(endpoint)
    for _ in range(RANDOM_INPUTS):
        assert not check(endpoint, dice.randbytes(dice.randrange(200)))


def test_at_least_20_000_inputs_are_tried() -> None:
    assert len(PARSERS) * (INPUTS + RANDOM_INPUTS) >= 20_000


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: path.name)
def test_corpus_body_is_handled_correctly(path: Path) -> None:
    accepts(PARSERS[path.parent.name], path.read_bytes())


# Responses


def damaged(dice: random.Random, part: GenerateResponse) -> GenerateResponse | None:
    """The message with some bytes changed, or None where it no longer parses."""
    try:
        return GenerateResponse.FromString(damaged_bytes(dice, part.SerializeToString()))
    except DecodeError:
        return None


def damaged_bytes(dice: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(data) + 1)
        data[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
    return bytes(data)


def odd_parts(dice: random.Random, sent_messages: list[Case]) -> list[tuple[int, GenerateResponse]]:
    """The messages of the sources with some damaged, lost, repeated or out of order."""
    parts = []
    for piece in sent_messages:
        part = message(piece.get("part", {}), GenerateResponse)
        if "text" in piece:
            part.deltas.add(index=0, text=piece["text"])
        source = piece.get("source", 0)
        match dice.randrange(8):
            case 0:
                continue
            case 1:
                parts += [(source, part)] * 2
            case 2:
                parts.insert(dice.randint(0, len(parts)), (source, part))
            case 3 if (odd := damaged(dice, part)) is not None:
                parts.append((source, odd))
            case _:
                parts.append((source, part))
    return parts


@pytest.mark.parametrize(("folder", "case"), cases("chat", "completions"))
def test_damaged_service_messages_still_give_a_valid_response(folder: str, case: Case) -> None:
    if "sources" not in case:
        return
    dice = random.Random(f"{folder} {case['request']}" if "request" in case else folder)
    call = parse(folder, case)
    for _ in range(60):
        parts = odd_parts(dice, case["sources"])
        plain = call.document_translator(IDENTITY)
        count = len(call.requests)
        stream = Exchange(call.stream_translator(IDENTITY), count)
        collected = Exchange(plain, count)
        sent = []
        for source, part in parts:
            sent.append(stream.sources[source].part(part))
            collected.sources[source].part(part)
        sent += [source.end(OK) for source in stream.sources]
        *events, last = events_of(everything(sent))
        assert not any("error" in event for event in events)
        if last == "[DONE]":
            json.loads(plain.document())
            continue
        assert last["error"]["type"] == "server_error"
        with pytest.raises(OpenAIError) as raised:
            plain.document()
        assert raised.value.status == 500


@pytest.mark.parametrize(("folder", "case"), cases("responses"))
def test_damaged_service_messages_still_give_a_valid_named_stream(folder: str, case: Case) -> None:
    if "sources" not in case:
        return
    dice = random.Random(f"{folder} {case['request']}")
    call = parse(folder, case)
    for _ in range(60):
        stream = Exchange(call.stream_translator(IDENTITY))
        plain = call.document_translator(IDENTITY)
        (streaming,), (collecting,) = stream.sources, Exchange(plain).sources
        sent = []
        try:
            for _, part in odd_parts(dice, case["sources"]):
                collecting.part(part)
                sent.append(streaming.part(part))
            sent.append(streaming.end(OK))
        except OpenAIError as error:
            # The transport ends the call.
            sent += [stream.hold_expired(), stream.fail(error)]
        if not stream.opened:
            continue
        *events, last = events_of(everything(sent))
        assert last == "[DONE]"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        end = events[-1]["response"]
        if end["status"] == "failed":
            assert end["error"]["code"] == "server_error"
            continue
        document = json.loads(plain.document())
        assert end["output"] == document["output"]


def odd_image_parts(
    dice: random.Random, sent_messages: list[GenerateImageResponse]
) -> Iterator[GenerateImageResponse]:
    """The messages of an image call with some damaged, lost, repeated or out of order."""
    for part in sent_messages:
        match dice.randrange(6):
            case 0:
                continue
            case 1:
                yield part
                yield dice.choice(sent_messages)
            case 2:
                with suppress(DecodeError):
                    yield GenerateImageResponse.FromString(
                        damaged_bytes(dice, part.SerializeToString())
                    )
            case _:
                yield part


@pytest.mark.parametrize(("_folder", "case"), cases("images"))
def test_damaged_image_messages_still_give_a_valid_response(_folder: str, case: Case) -> None:
    dice = random.Random(str(case["request"]))
    sent_messages = [message(part, GenerateImageResponse) for part in case.get("parts", ())]
    call = parse_image_request(body_of(case))
    complete = 0
    for _ in range(200):
        parts = list(odd_image_parts(dice, sent_messages))
        plain, stream = ImageResponse(call, 0), Exchange(ImageStream(call, 0))
        (collecting,), (streaming,) = Exchange(plain).sources, stream.sources
        for part in parts:
            collecting.part(part)
        sent = [*(streaming.part(part) for part in parts), streaming.end(OK)]
        try:
            document = plain.document()
        except OpenAIError:
            assert stream.error is not None
            assert stream.error.status == 500
            continue
        complete += 1
        body = b"".join(encoded(document))
        assert len(body) == sum(map(len, document))
        assert len(json.loads(body)["data"]) == call.image_count
        for event in everything(sent).decode().split("\n\n")[:-1]:
            name, data = event.split("\n")
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert not sent_messages or complete > 20


MEGABYTE = 1 << 20


def filled(head: bytes, unit: bytes, tail: bytes, size: int = MEGABYTE) -> bytes:
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


CHAT = b'{"model":"m","messages":'
USER = b'[{"role":"user","content":'
ASK = b'{"model":"m","max_tokens":1,"messages":'
USED = b'{"type":"tool_use","id":"a","name":"f","input":{}}'
RESULT = b'{"type":"tool_result","tool_use_id":"a"}'
TOOL = b'{"type":"function","function":{"name":"a"}}'
RESPONSE = b'{"model":"m","input":'
FLAT_TOOL = b'{"type":"function","name":"a"}'
MANY_PROPERTIES = b",".join(b'"%d":1' % i for i in range(90_000))
MEGABYTES: list[tuple[str, bytes]] = [
    ("chat", b"[" * MEGABYTE),
    ("chat", b'{"a":' * (MEGABYTE // 5)),
    ("chat", filled(CHAT, b"[", b"")),
    ("chat", filled(CHAT + b"[", b"[],", b"1]}")),
    ("chat", filled(CHAT + b"[", b"{},", b"1]}")),
    ("chat", filled(CHAT + b"[", b'{"role":"user","content":""},', b"{}]}")),
    ("chat", filled(CHAT + USER + b"[", b'{"type":"text","text":""},', b"5]}]}")),
    ("chat", filled(CHAT + USER + b'"', b"a", b'"}]}')),
    ("chat", filled(CHAT + USER + b'"', b"\\u00e9", b'"}]}')),
    ("chat", filled(CHAT + USER + b'"', b'\\"', b'"}]}')),
    ("chat", filled(CHAT + USER + b'"', "é".encode(), b'"}],"response_format":{"type":"text"}}')),
    ("chat", filled(CHAT + b'"[{', b"[", b'"}')),
    ("chat", filled(CHAT + b'"x","stop":[', b'"",', b'""]}')),
    ("chat", filled(CHAT + b'"x","n":', b"9", b"}")),
    ("chat", filled(CHAT + b'"x","temperature":0.', b"9", b"}")),
    ("chat", filled(CHAT + b'"x","', b"k", b'":1}')),
    ("chat", filled(CHAT + b'"x"', b',"stop":null', b"}")),
    ("chat", filled(CHAT + b'"x","tools":[', TOOL + b",", b"0]}")),
    ("chat", filled(CHAT + b'"x","chat_template_kwargs":', b'{"a":', b"")),
    ("chat", CHAT + b'"x","logit_bias":{' + MANY_PROPERTIES + b"}}"),
    ("chat", CHAT + b'"x",' + MANY_PROPERTIES + b"}"),
    ("chat", filled(CHAT + b'"x","user":"', b'\\"[', b"")),
    ("chat", filled(CHAT + b'"', b"[", b'"}')),
    ("messages", filled(ASK + USER + b"[", b'{"type":"text","text":""},', b"5]}]}")),
    ("messages", filled(ASK + b"[", b'{"role":"user","content":""},', b"{}]}")),
    ("messages", filled(ASK + USER + b'"x"}],"tools":[', b'{"name":"a"},', b"0]}")),
    ("messages", filled(ASK + b'[{"role":"assistant","content":[', USED + b",", USED + b"]}]}")),
    ("messages", filled(ASK + USER + b"[", RESULT + b",", RESULT + b"]}]}")),
    ("messages", filled(ASK + USER + b'"x"}],"system":"', b"x-anthropic-billing-header:", b'"}')),
    ("responses", filled(RESPONSE, b"[", b"")),
    ("responses", filled(RESPONSE + b"[", b"[],", b"1]}")),
    ("responses", filled(RESPONSE + b"[", b"{},", b"1]}")),
    ("responses", filled(RESPONSE + b"[", b'{"role":"user","content":""},', b"{}]}")),
    ("responses", filled(RESPONSE + USER + b"[", b'{"type":"input_text","text":""},', b"5]}]}")),
    ("responses", filled(RESPONSE + b'"', b"\\u00e9", b'"}')),
    ("responses", filled(RESPONSE + b'"x","tools":[', FLAT_TOOL + b",", b"0]}")),
    ("responses", filled(RESPONSE + b'"x","client_metadata":', b'{"a":', b"")),
    ("completions", filled(b'{"model":"m","prompt":[', b"1,", b"1]}")),
    ("completions", filled(b'{"model":"m","prompt":[', b"1,", b"-1]}")),
    ("completions", filled(b'{"model":"m","prompt":[', b'"a",', b"1]}")),
    ("completions", filled(b'{"model":"m","prompt":[', b"[1],", b"[]]}")),
    ("embeddings", filled(b'{"model":"m","input":[', b"[1],", b"1]}")),
    ("embeddings", filled(b'{"model":"m","input":[', b'"",', b'""]}')),
    ("images", filled(b'{"prompt":"', b"a", b'"}')),
    ("images", filled(b'{"prompt":"x","size":"', b"9", b'x64"}')),
    ("images", filled(b'{"prompt":"x","size":"1x', b"1", b'"}')),
    ("images", filled(b'{"prompt":"x","svg":', b'{"a":', b"")),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "body"), MEGABYTES, ids=lambda value: str(value)[:48])
def test_one_megabyte_body_is_parsed_within_the_time_limit(endpoint: str, body: bytes) -> None:
    accepts(PARSERS[endpoint], body)


LARGEST = 16 * MEGABYTE
PART = b'{"type":"text","text":"a"}'
MESSAGE = USER[1:] + b"[" + (PART + b",") * 999 + PART + b"]}"
# Bodies of the largest size that is accepted by default, and the first limit that refuses each.
LARGEST_BODIES: list[tuple[str, bytes, str]] = [
    ("completions", filled(b'{"model":"m","prompt":[', b"1,", b"1]}", LARGEST), "entries"),
    ("completions", filled(b'{"model":"m","prompt":[', b'"a",', b'""]}', LARGEST), "strings"),
    ("completions", filled(b'{"model":"m","prompt":[', b"[1],", b"[1]]}", LARGEST), "arrays"),
    ("embeddings", filled(b'{"model":"m","input":[', b"1,", b"1]}", LARGEST), "entries"),
    ("chat", filled(CHAT + b"[", MESSAGE + b",", MESSAGE + b"]}", LARGEST), "strings"),
    ("chat", filled(CHAT + b"[", MESSAGE + b",", MESSAGE + b"]}"), "content parts"),
    (
        "chat",
        filled(CHAT + b'"[', (MESSAGE + b",").replace(b'"', b'\\"'), b'{}]"}', LARGEST),
        "strings",
    ),
]


@pytest.mark.parametrize(("endpoint", "body", "kind"), LARGEST_BODIES, ids=range(7))
def test_body_with_too_many_entries_is_refused_before_it_is_decoded(
    endpoint: str, body: bytes, kind: str
) -> None:
    with pytest.raises(OpenAIError, match=f"too many {kind}") as refused:
        PARSERS[endpoint](body)
    assert (refused.value.status, refused.value.code) == (400, "array_above_max_length")


@pytest.mark.parametrize(
    "text", [b"a, [", b'\\"', b"\\\\"], ids=["brackets", "quotes", "backslashes"]
)
def test_brackets_and_quotes_inside_strings_are_not_counted_as_entries(text: bytes) -> None:
    parse_chat_request(filled(CHAT + USER + b'"', text, b'"}]}', LARGEST))
