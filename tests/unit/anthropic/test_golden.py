"""Every golden pair matches, and fits the types of Anthropic's SDK."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.unit.openai.golden_files import (
    IDENTITY,
    Case,
    body_of,
    cases,
    document_bytes,
    expected_named_stream,
    fields,
    parse,
    stream_bytes,
)

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.mark.parametrize(("folder", "case"), cases("messages"))
def test_messages_pairs_match(folder: str, case: Case) -> None:
    call = parse(folder, case)
    assert [fields(request) for request in call.requests] == case["calls"]
    assert call.model == json.loads(body_of(case))["model"]
    if "events" in case:
        assert call.stream
        sent = stream_bytes(call.stream_translator(IDENTITY), case["sources"])
        assert sent.decode() == expected_named_stream(case["events"]).decode()
    elif "document" in case:
        assert not call.stream
        answer = document_bytes(call.document_translator(IDENTITY), case["sources"])
        assert answer.decode() == msgspec.json.encode(case["document"]).decode()


@pytest.mark.parametrize(("_folder", "case"), cases("messages"))
def test_golden_responses_fit_the_sdks_types(_folder: str, case: Case) -> None:
    if "document" in case:
        Message.model_validate_json(json.dumps(case["document"]), strict=True)
    for event in case.get("events", ()):
        # The SDK handles these two by their names.
        if event["type"] not in ("ping", "error"):
            EVENT.validate_json(json.dumps(event), strict=True)
