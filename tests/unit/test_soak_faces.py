"""The soak finds each class of fault in answers of Responses, Messages and Tokenize."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from bench.soak.faults import Window
from bench.soak.judge import Answer, judge, response_id
from bench.soak.plan import DETOKENIZE, MESSAGES, RESPONSES, TOKENIZE, Plan
from bench.soak.plans import Planner
from bench.soak.record import Record
from inference.config import ModelConfig
from inference.engines.scripted import ScriptedEngine
from isthmus.v1.tokenize_pb2 import TokenizeRequest

WORDS = tuple(f"q7p0.{position}" for position in range(4))
TEXT = " ".join(WORDS)
DONE = ("", None)
Event = tuple[str, Any]


def planned(path: str, **more: Any) -> Plan:
    """A request whose answer is WORDS."""
    return Plan(7, "", path, {}, (WORDS,), prompt_tokens=3, completion_tokens=4, **more)


def streamed(*events: Event, complete: bool = True) -> Answer:
    """The answer with these events."""
    texts = (
        f"event: {name}\ndata: {json.dumps(data)}\n\n" if data else "data: [DONE]\n\n"
        for name, data in events
    )
    return Answer(200, bytearray("".join(texts).encode()), complete=complete, events=True)


def classes(plan: Plan, answer: Answer) -> set[str]:
    """The classes of the problems that are found."""
    return {kind for kind, _ in judge(plan, answer).problems}


def response(text: str = TEXT, **more: Any) -> dict[str, Any]:
    """A whole response object."""
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    output = [{"type": "message", "content": [{"type": "output_text", "text": text}]}]
    made = {"id": "resp_1", "status": "completed", "output": output, "usage": usage}
    return made | {"error": None, "previous_response_id": None} | more


def message(text: str = TEXT, **more: Any) -> dict[str, Any]:
    """A whole message."""
    usage = {"input_tokens": 3, "output_tokens": 4}
    content = [{"type": "text", "text": text}]
    return {"content": content, "stop_reason": "end_turn", "usage": usage} | more


def response_events(words: list[str] | tuple[str, ...] = WORDS) -> list[Event]:
    """The events of a streamed response, without numbers."""
    text = " ".join(words)
    begun = {"response": response(status="in_progress", output=[])}
    deltas = [{"delta": word if at == 0 else f" {word}"} for at, word in enumerate(words)]
    return [
        ("response.created", begun),
        *(("response.output_text.delta", delta) for delta in deltas),
        ("response.output_text.done", {"text": text}),
        ("response.completed", {"response": response(text)}),
        DONE,
    ]


def message_events(words: list[str] | tuple[str, ...] = WORDS) -> list[Event]:
    """The events of a streamed message, without types."""
    deltas = [{"text": word if at == 0 else f" {word}"} for at, word in enumerate(words)]
    return [
        ("message_start", {"message": {"usage": {"input_tokens": 3}}}),
        *(("content_block_delta", {"delta": delta}) for delta in deltas),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": message()["usage"]}),
        ("message_stop", {"index": 0}),
    ]


def numbered(events: list[Event]) -> Answer:
    """The stream of these events, each with its type and number."""
    return streamed(
        *(
            (name, data and {"type": name, "sequence_number": number, **data})
            for number, (name, data) in enumerate(events)
        )
    )


def test_right_answers_have_no_problem() -> None:
    for path, document in ((RESPONSES, response()), (MESSAGES, message())):
        whole = Answer(200, bytearray(json.dumps(document).encode()), complete=True)
        assert judge(planned(path), whole).problems == []
    assert judge(planned(RESPONSES), numbered(response_events())).problems == []
    assert judge(planned(MESSAGES), numbered(message_events())).problems == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["q7p0.0", "q7p0.1", "q7p0.3"], "lost"),
        (["q7p0.0", "q7p0.1", "q7p0.1", "q7p0.2", "q7p0.3"], "duplicated"),
        (["q7p0.0", "q8p0.1", "q7p0.2", "q7p0.3"], "misdelivered"),
        (["q7p0.0", "q7p0.1", "q7p0.2", "q7p0.3?"], "corrupted"),
    ],
)
def test_wrong_words_have_their_class(words: list[str], found: str) -> None:
    for path, document, events in (
        (RESPONSES, response(" ".join(words)), response_events(words)),
        (MESSAGES, message(" ".join(words)), message_events(words)),
    ):
        whole = Answer(200, bytearray(json.dumps(document).encode()), complete=True)
        assert classes(planned(path), whole) == {found}
        assert classes(planned(path), numbered(events)) == {found}


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (RESPONSES, response(status="incomplete")),
        (RESPONSES, response(usage={"input_tokens": 2, "output_tokens": 4, "total_tokens": 6})),
        (RESPONSES, response(usage={"input_tokens": 3, "output_tokens": 4, "total_tokens": 6})),
        (RESPONSES, response(output=[])),
        (MESSAGES, message(stop_reason="max_tokens")),
        (MESSAGES, message(usage={"input_tokens": 3, "output_tokens": 5})),
        (MESSAGES, message(content=[])),
    ],
)
def test_wrong_end_or_usage_is_corrupted(path: str, document: dict[str, Any]) -> None:
    whole = Answer(200, bytearray(json.dumps(document).encode()), complete=True)
    assert classes(planned(path), whole) == {"corrupted"}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        (response_events()[:-1], "lost"),  # no [DONE]
        ([*response_events()[:-2], DONE], "lost"),  # no end
        ([*response_events(), DONE], "duplicated"),
        ([*response_events()[:-1], response_events()[1], DONE], "duplicated"),
        ([("response.created", {"response": response(id="resp_2")}), *response_events()[1:]],
         "misdelivered"),
    ],
)  # fmt: skip
def test_wrong_events_of_a_response_have_their_class(events: list[Event], found: str) -> None:
    assert found in classes(planned(RESPONSES), numbered(events))


@pytest.mark.parametrize(("number", "found"), [(0, "duplicated"), (2, "lost")])
def test_wrong_sequence_number_is_a_lost_or_duplicated_event(number: int, found: str) -> None:
    events = [(name, data and dict(data)) for name, data in response_events()]
    events[1][1]["sequence_number"] = number
    assert found in classes(planned(RESPONSES), numbered(events))


@pytest.mark.parametrize(
    ("events", "found"),
    [
        (message_events()[:-1], "lost"),
        (message_events()[1:], "lost"),
        ([*message_events(), message_events()[-1]], "duplicated"),
        ([*message_events()[:-1], message_events()[-2], message_events()[-1]], "duplicated"),
        ([*message_events()[:-2], message_events()[1], *message_events()[-2:]], "duplicated"),
    ],
)
def test_wrong_events_of_a_message_have_their_class(events: list[Event], found: str) -> None:
    assert found in classes(planned(MESSAGES), numbered(events))


def test_failures_of_a_stream_are_errors_and_nothing_else_follows_them() -> None:
    failed = {"error": {"code": "server_error", "message": "m"}}
    ends: dict[str, list[Event]] = {
        RESPONSES: [("response.failed", {"response": failed}), DONE],
        MESSAGES: [("error", {"error": {"type": "api_error", "message": "m"}})],
    }
    begun = {RESPONSES: response_events()[:3], MESSAGES: message_events()[:3]}
    for path, end in ends.items():
        events = [*begun[path], *end]
        assert judge(planned(path), numbered(events)).outcome == "error"
        assert classes(planned(path), numbered(events)) == set()
        assert judge(planned(path, fail="mid"), numbered(events)).outcome == "as cued"
        assert "duplicated" in classes(planned(path), numbered([*events, begun[path][1]]))


def test_continuation_is_of_the_response_it_names() -> None:
    first = Answer(200, bytearray(json.dumps(response(), separators=(",", ":")).encode()))
    assert response_id(first) == "resp_1"
    plan = planned(RESPONSES).referring_to("resp_1", 1.0)
    for name, found in (("resp_1", set()), ("resp_2", {"misdelivered"})):
        body = json.dumps(response(previous_response_id=name)).encode()
        assert classes(plan, Answer(200, bytearray(body), complete=True)) == found


def test_only_a_restart_since_then_explains_that_a_response_is_not_kept() -> None:
    error = b'{"error":{"type":"invalid_request_error","message":"not found"}}'
    answer = Answer(404, bytearray(error), complete=True, began=20.0, ended=20.1)
    windows = [Window("edge restart", "edge-b", 9.0, 12.0)]
    for since, edge, unexplained in ((10.0, "edge-b", 0), (13.0, "edge-b", 1), (10.0, "edge-a", 1)):
        record, plan = Record(), replace(planned(RESPONSES), body=None)
        plan = plan.referring_to("resp_1", since)
        record.add(plan, answer, judge(plan, answer), edge, windows, second=False)
        assert len(record.unexplained) == unexplained


async def test_expected_tokens_are_those_of_the_scripted_engine() -> None:
    engine = ScriptedEngine(ModelConfig(id="t", engine="scripted"))
    plan = Plan(7, "tokens", TOKENIZE, {}, inputs=WORDS)
    ids = (await engine.tokenize(TokenizeRequest(text=TEXT))).ids
    for tokens, found in ((ids, set()), (ids[::-1], {"corrupted"})):
        body = json.dumps({"count": len(tokens), "tokens": tokens}).encode()
        assert classes(plan, Answer(200, bytearray(body), complete=True)) == found
    body = json.dumps({"count": len(ids) + 1, "tokens": ids}).encode()
    assert classes(plan, Answer(200, bytearray(body), complete=True)) == {"corrupted"}

    request = TokenizeRequest()
    request.token_ids.ids.extend([7, 8])
    text = (await engine.tokenize(request)).text
    plan = Plan(7, "tokens", DETOKENIZE, {}, inputs=("w7", "w8"))
    for prompt, found in ((text, set()), ("w8 w7", {"corrupted"})):
        body = json.dumps({"prompt": prompt}).encode()
        assert classes(plan, Answer(200, bytearray(body), complete=True)) == found


def test_a_stored_response_is_continued_and_then_read() -> None:
    planner = Planner(random.Random(3))
    first = next(plan for plan in iter(planner.next, None) if plan.then)
    second = first.then
    assert second is not None
    assert second.then is not None
    assert [first.kind, second.kind, second.then.kind] == [
        "response stored", "response continued", "response read",
    ]  # fmt: skip
    assert len({plan.number for plan in (first, second, second.then)}) == 3
    cues = [(plan.body or {})["input"].split() for plan in (first, second)]
    words = sum(map(len, cues)) + first.completion_tokens
    words += 3 if "instructions" in (second.body or {}) else 0
    assert second.prompt_tokens == second.then.prompt_tokens == words
