"""The soak's judging functions find each class of fault. Its runs are not tested here."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from bench.soak.documents import _vector
from bench.soak.faults import Window
from bench.soak.judge import Answer, judge, read_events
from bench.soak.ledger import Death, count
from bench.soak.plan import CHAT, DIMENSIONS, IMAGES, Plan
from bench.soak.plans import Planner
from bench.soak.record import Record, clean_stops, failed_during
from bench.soak.resources import Sample, slope_mib_per_hour
from inference.config import ModelConfig
from inference.engines.scripted_embedding import ScriptedEmbeddingEngine
from inference.engines.scripted_image import ScriptedImageEngine
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.image_pb2 import GenerateImageRequest

WORDS = tuple(f"q7p0.{position}" for position in range(4))
STREAM = Plan(7, "chat stream", CHAT, {"stream": True}, (WORDS,))
PLAIN = Plan(7, "chat", CHAT, {}, (WORDS,), prompt_tokens=3, completion_tokens=4)


def chunk(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a streamed chat."""
    delta = {} if text is None else {"content": text}
    return {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def stream(*events: dict[str, Any] | str, complete: bool = True) -> Answer:
    """The answer with these events."""
    data = (event if isinstance(event, str) else json.dumps(event) for event in events)
    body = bytearray("".join(f"data: {one}\n\n" for one in data).encode())
    return Answer(200, body, complete=complete, cut="" if complete else "cut", events=True)


def chunks(words: tuple[str, ...] | list[str]) -> list[dict[str, Any]]:
    """One chunk for each word."""
    return [chunk(word if at == 0 else f" {word}") for at, word in enumerate(words)]


def document(text: str, completion_tokens: int = 4) -> Answer:
    """The answer with a whole chat."""
    usage = {"prompt_tokens": 3, "completion_tokens": completion_tokens}
    usage["total_tokens"] = 3 + completion_tokens
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    return Answer(200, bytearray(body), complete=True)


def classes(plan: Plan, answer: Answer) -> list[str]:
    """The classes of the problems that are found."""
    return [kind for kind, _ in judge(plan, answer).problems]


def test_right_answers_have_no_problem() -> None:
    whole = stream(*chunks(WORDS), chunk(finish="stop"), "[DONE]")
    assert judge(STREAM, whole).outcome == "ok"
    assert classes(STREAM, whole) == []
    assert judge(PLAIN, document(" ".join(WORDS))).outcome == "ok"
    assert classes(PLAIN, document(" ".join(WORDS))) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["q7p0.0", "q7p0.1", "q7p0.3"], "lost"),
        (["q7p0.0", "q7p0.1", "q7p0.2"], "lost"),
        ([], "lost"),
        (["q7p0.0", "q7p0.1", "q7p0.1", "q7p0.2", "q7p0.3"], "duplicated"),
        (["q7p0.0", "q8p0.1", "q7p0.2", "q7p0.3"], "misdelivered"),
        (["q7p0.0", "q7p1.1", "q7p0.2", "q7p0.3"], "misdelivered"),
        (["q7p0.0", "q7p0.1", "q7p0.2", "q7p0.3?"], "corrupted"),
        (["q7p0.1", "q7p0.0", "q7p0.2", "q7p0.3"], "corrupted"),
    ],
)
def test_wrong_words_of_a_success_have_their_class(words: list[str], found: str) -> None:
    assert classes(PLAIN, document(" ".join(words))) == [found]
    assert classes(STREAM, stream(*chunks(words), chunk(finish="stop"), "[DONE]")) == [found]


def test_wrong_usage_and_broken_json_are_corrupted() -> None:
    assert classes(PLAIN, document(" ".join(WORDS), completion_tokens=5)) == ["corrupted"]
    assert classes(PLAIN, Answer(200, bytearray(b'{"choices":'), complete=True)) == ["corrupted"]
    assert classes(STREAM, stream("{")) == ["corrupted"]
    with pytest.raises(ValueError, match="no field"):
        read_events(b"dat: {}\n\n")


def test_stream_that_ends_without_done_or_finish_is_lost() -> None:
    assert classes(STREAM, stream(*chunks(WORDS), chunk(finish="stop"))) == ["lost"]
    assert classes(STREAM, stream(*chunks(WORDS), "[DONE]")) == ["lost"]


def test_second_end_and_events_after_the_end_are_duplicated() -> None:
    twice = stream(*chunks(WORDS), chunk(finish="stop"), chunk(finish="stop"), "[DONE]")
    assert classes(STREAM, twice) == ["duplicated"]
    after = stream(*chunks(WORDS), chunk(finish="stop"), "[DONE]", chunk(""))
    assert classes(STREAM, after) == ["duplicated"]
    error = {"error": {"type": "server_error", "message": "lost"}}
    assert classes(STREAM, stream(*chunks(WORDS[:2]), error, "[DONE]")) == ["duplicated"]


def test_error_event_after_a_part_of_the_words_is_an_error_without_problem() -> None:
    error = {"error": {"type": "server_error", "message": "lost"}}
    verdict = judge(STREAM, stream(*chunks(WORDS[:2]), error))
    assert (verdict.outcome, verdict.problems) == ("error", [])


def test_success_of_a_request_whose_engine_failed_is_corrupted() -> None:
    plan = Plan(7, "chat", CHAT, {}, (WORDS,), prompt_tokens=3, completion_tokens=4, fail="mid")
    assert classes(plan, document(" ".join(WORDS))) == ["corrupted"]
    error = b'{"error":{"type":"server_error","message":"m"}}'
    assert judge(plan, Answer(500, bytearray(error), complete=True)).outcome == "as cued"


def test_cut_stream_is_lost_unless_a_fault_explains_it() -> None:
    cut = stream(*chunks(WORDS[:2]), complete=False)
    cut.began, cut.ended = 10.0, 12.0
    # A killed service must become an error event; it explains no cut connection.
    for windows in ([], [Window("kill", "service-a", 11.0)]):
        record = Record()
        record.add(STREAM, cut, judge(STREAM, cut), "edge-a", windows, second=False)
        assert record.classes["lost"] == 1
    cut.cancelled = True
    record = Record()
    record.add(STREAM, cut, judge(STREAM, cut), "edge-a", [], second=False)
    assert record.classes["lost"] == 0


def test_only_the_restart_of_its_edge_explains_a_request_without_answer() -> None:
    answer = Answer(cut="ServerDisconnectedError: ", began=10.0, ended=10.1)
    for edge, lost in (("edge-b", 0), ("edge-a", 1)):
        record = Record()
        windows = [Window("edge restart", "edge-b", 9.0)]
        record.add(PLAIN, answer, judge(PLAIN, answer), edge, windows, second=False)
        assert record.classes["lost"] == lost


def test_restart_of_an_edge_explains_no_failure_of_a_request_that_had_arrived() -> None:
    error = b'{"error":{"type":"server_error","message":"m"}}'
    for began, unexplained in ((9.5, 0), (8.5, 1)):
        answer = Answer(503, bytearray(error), complete=True, began=began, ended=10.0)
        record = Record()
        windows = [Window("edge restart", "edge-b", 9.0)]
        record.add(PLAIN, answer, judge(PLAIN, answer), "edge-b", windows, second=False)
        assert len(record.unexplained) == unexplained


def test_clean_stop_explains_a_failure_only_if_no_service_is_left() -> None:
    error = b'{"error":{"type":"server_error","message":"m"}}'
    answer = Answer(503, bytearray(error), complete=True, began=10.0, ended=10.1)
    first, second = (Window("clean stop", name, 9.0, 12.0) for name in ("service-a", "service-b"))
    for windows, unexplained in (([first], 1), ([first, second], 0)):
        record = Record()
        record.add(PLAIN, answer, judge(PLAIN, answer), "edge-b", windows, second=False)
        assert len(record.unexplained) == unexplained


def test_failures_count_for_a_clean_stop_without_another_fault() -> None:
    stop = Window("clean stop", "service-a", 100.0, 104.0)
    near, far = Window("pause", "edge-a", 80.0, 95.0), Window("kill", "service-b", 70.0, 89.0)
    assert clean_stops([stop, near]) == []
    assert clean_stops([stop, far]) == [stop]
    error = b'{"error":{"type":"server_error","message":"m"}}'
    answer = Answer(503, bytearray(error), complete=True, began=101.0, ended=102.0)
    record = Record()
    record.add(PLAIN, answer, judge(PLAIN, answer), "edge-a", [stop], second=False)
    assert len(failed_during([stop], record.failures)) == 1


def test_second_execution_is_found_unless_the_first_was_lost_before_its_output() -> None:
    death = Death(1, 5.0, 4.9)
    again = ["B q1p0 4.0 1", "O q1p0 4.5 1", "B q1p0 5.1 2"]
    assert len(count(again, [death], {"q1p0": True}).wrong) == 1
    just_before = ["B q1p0 4.0 1", "O q1p0 4.95 1", "B q1p0 5.1 2"]
    assert count(just_before, [death], {"q1p0": True}).moved == 1
    unbegun = ["B q1p0 4.0 1", "B q1p0 5.1 2"]
    assert count(unbegun, [death], {"q1p0": True}).wrong == []
    assert len(count(unbegun, [death], {"q1p0": False}).wrong) == 1


async def test_expected_vectors_and_images_are_those_of_the_scripted_engines() -> None:
    arguments = {"dimensions": DIMENSIONS}
    config = ModelConfig(id="v", engine="scripted-embedding", engine_args=arguments)
    engine, out = ScriptedEmbeddingEngine(config), []
    request = EmbedRequest(model="v")
    request.inputs.add(text="q1p0.0 soak")
    terms: Any = type("Terms", (), {"context_length": 100, "token_inputs": "own"})
    await engine.generate(await engine.prepare(request, terms), out.append)
    assert out[0].vectors == _vector("q1p0.0 soak", DIMENSIONS)

    images, made = ScriptedImageEngine(ModelConfig(id="i", engine="scripted-image")), []
    seed = 0x80FF40
    picture = GenerateImageRequest(model="i", prompt="a b", seed=seed, steps=4, partial_images=1)
    await images.generate(await images.prepare(picture, terms), made.append)
    plan = Plan(1, "image stream", IMAGES, {}, prompt_tokens=2, seeds=(seed,), previews=1)
    events = []
    for message in made:
        for name, image in (
            ("partial_image", message.partial_image),
            ("completed", message.image),
        ):
            if image.data:
                data = {"type": f"image_generation.{name}", "index": 0, "seed": seed}
                data |= {"b64_json": base64.b64encode(image.data).decode()}
                data |= {"partial_image_index": 0, "usage": {"input_tokens": 2}}
                events.append(f"event: {data['type']}\ndata: {json.dumps(data)}\n\n")
    assert len(events) == 2
    answer = Answer(200, bytearray("".join(events).encode()), complete=True, events=True)
    assert judge(plan, answer).problems == []
    other = Plan(1, "image stream", IMAGES, {}, prompt_tokens=2, seeds=(seed + 1,), previews=1)
    assert "misdelivered" in classes(other, answer)


def test_plans_depend_only_on_the_seed() -> None:
    first, second = Planner(random.Random(3)), Planner(random.Random(3))
    plans = [first.next() for _ in range(300)]
    assert plans == [second.next() for _ in range(300)]
    assert len({name for plan in plans for name in plan.executions}) >= 280


def test_slope_leaves_out_the_warm_up() -> None:
    grown = [Sample(float(at), (100 if at < 20 else 50 + at) << 20, 1, 1) for at in range(100)]
    assert slope_mib_per_hour(grown) == pytest.approx(3600.0)
    assert slope_mib_per_hour(grown[:2]) is None
