"""A stream has the content of the document, however the output was split."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edge.anthropic.request import parse_messages_request
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.usage_pb2 import Usage
from tests.unit.openai.golden_files import IDENTITY
from tests.unit.openai.test_streams import ADMITTED, choice_parts, run

BODY = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
# The member of a block that a delta extends.
GROWS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


def joined(stream: bytes) -> dict[str, Any]:
    """The message that a client makes of the events, whose order is checked."""
    message: dict[str, Any] = {}
    is_open = False
    ended = ""
    for lines in stream.decode().split("\n\n")[:-1]:
        name, data = lines.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert ended != "message_stop"
        ended = event["type"]
        blocks = message.setdefault("content", []) if message else []
        match event:
            case {"type": "message_start"}:
                assert not message
                message = event["message"]
            case {"type": "ping"}:
                assert not blocks
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert (index, is_open) == (len(blocks), False)
                is_open = True
                blocks.append(block | {"partial_json": ""})
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                assert (index, is_open) == (len(blocks) - 1, True)
                member = GROWS[delta["type"]]
                assert delta[member] or member == "signature"
                blocks[-1][member] += delta[member]
            case {"type": "content_block_stop", "index": index}:
                assert (index, is_open) == (len(blocks) - 1, True)
                is_open = False
            case {"type": "message_delta"}:
                assert not is_open
                message |= event["delta"] | {"usage": event["usage"]}
    assert ended == "message_stop"
    for block in message["content"]:
        arguments = block.pop("partial_json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return message


@pytest.mark.parametrize("seed", range(200))
def test_stream_equals_the_document_however_the_output_is_split(seed: int) -> None:
    dice = random.Random(seed)
    call = parse_messages_request(json.dumps(BODY).encode())
    parts = [ADMITTED, *choice_parts(dice, 0)]
    parts[-1].MergeFrom(GenerateResponse(usage=Usage(prompt_tokens=3, completion_tokens=7)))
    document = call.document_translator(IDENTITY)
    assert run(document, parts) == b""
    message = joined(run(call.stream_translator(IDENTITY), parts))
    assert message == json.loads(document.document())
    assert [block["type"] for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert message["stop_reason"] == "tool_use"
