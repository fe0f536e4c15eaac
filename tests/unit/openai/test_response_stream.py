"""The events of a response do not depend on how the output was split."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edge.exchange.machine import Exchange
from edge.openai.errors import OpenAIError
from edge.openai.responses.request import parse_responses_request
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    ChoiceFinish,
    GenerateResponse,
    ToolCallDelta,
)
from isthmus.v1.usage_pb2 import Admitted, Usage
from tests.unit.openai.golden_files import IDENTITY, OK, events_of, everything
from tests.unit.openai.test_streams import TEXT, pieces

ADMITTED = GenerateResponse(admitted=Admitted(system_fingerprint="fp_1"))
TOOLS = [
    {"type": "function", "name": "f"},
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "write"}]},
]
INPUT = json.dumps({"input": TEXT})


def parsed(**more: Any) -> Any:
    body = {"model": "m", "input": "hi", "tools": TOOLS, **more}
    return parse_responses_request(json.dumps(body).encode())


def parts_of(dice: random.Random) -> list[GenerateResponse]:
    """Messages with reasoning, text and three calls, each split at random."""
    deltas = [ChoiceDelta(index=0, reasoning=cut) for cut in pieces(dice, "Hmm, well. ")]
    deltas += [ChoiceDelta(index=0, text=cut) for cut in pieces(dice, TEXT)]
    for number, (name, text) in enumerate((("f", "{}"), ("patch", INPUT), ("n__write", INPUT))):
        calls = [ToolCallDelta(index=number, id=f"call_{number}", name=name)]
        calls += [ToolCallDelta(index=number, arguments=cut) for cut in pieces(dice, text)]
        deltas += [ChoiceDelta(index=0, tool_calls=[call]) for call in calls]
    parts = [GenerateResponse(deltas=[delta]) for delta in deltas]
    merged = [parts[0]]
    for part in parts[1:]:
        if dice.random() < 0.3:
            merged[-1].MergeFrom(part)
        else:
            merged.append(part)
    finish = ChoiceFinish(index=0, reason=FINISH_REASON_TOOL_CALLS)
    usage = Usage(prompt_tokens=3, completion_tokens=7)
    return [ADMITTED, *merged, GenerateResponse(finishes=[finish], usage=usage)]


@pytest.mark.parametrize("seed", range(20))
def test_events_add_up_to_the_plain_response(seed: int) -> None:
    parts = parts_of(random.Random(seed))
    plain = parsed().document_translator(IDENTITY)
    (collecting,) = Exchange(plain).sources
    (streaming,) = Exchange(parsed(stream=True).stream_translator(IDENTITY)).sources
    for part in parts:
        collecting.part(part)
    sent = [*(streaming.part(part) for part in parts), streaming.end(OK)]
    *events, last = events_of(everything(sent))
    assert last == "[DONE]"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == json.loads(plain.document())
    joined: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            joined[event["item_id"]] = joined.get(event["item_id"], "") + event["delta"]
    reasoning, message, call, patch, write = events[-1]["response"]["output"]
    assert joined[reasoning["id"]] == reasoning["content"][0]["text"] == "Hmm, well. "
    assert joined[message["id"]] == message["content"][0]["text"] == TEXT
    assert joined[call["id"]] == call["arguments"] == "{}"
    assert joined[patch["id"]] == patch["input"] == TEXT
    assert joined[write["id"]] == write["input"] == TEXT
    assert (write["namespace"], write["name"]) == ("n", "write")


@pytest.mark.parametrize("seed", range(5))
def test_text_and_part_write_the_same_bytes(seed: int) -> None:
    """`text` is the fast path of `part`."""

    def opened() -> Any:
        exchange = Exchange(parsed(stream=True).stream_translator(IDENTITY))
        (source,) = exchange.sources
        source.part(ADMITTED)
        exchange.hold_expired()
        return source

    fast, general = opened(), opened()
    for cut in pieces(random.Random(seed), TEXT):
        delta = ChoiceDelta(index=0, text=cut)
        assert fast.text(cut) == general.part(GenerateResponse(deltas=[delta]))


@pytest.mark.parametrize(
    ("status", "code", "want"),
    [
        (500, None, "server_error"),
        (504, "deadline_exceeded", "server_error"),
        (429, "rate_limit_exceeded", "rate_limit_exceeded"),
        (400, "context_length_exceeded", "context_length_exceeded"),
        (400, "invalid_value", "invalid_prompt"),
        (429, "insufficient_quota", "insufficient_quota"),
    ],
)
def test_failure_has_a_code_that_clients_know(status: int, code: str | None, want: str) -> None:
    exchange = Exchange(parsed(stream=True).stream_translator(IDENTITY))
    (source,) = exchange.sources
    sent = [source.part(ADMITTED), exchange.hold_expired(), source.text("a")]
    sent.append(exchange.fail(OpenAIError(status, "It failed.", code=code)))
    *events, last = events_of(everything(sent))
    assert last == "[DONE]"
    failed = events[-1]["response"]
    assert failed["error"] == {"code": want, "message": "It failed."}
    assert [item["status"] for item in failed["output"]] == ["incomplete"]
    assert failed["usage"] is None
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
