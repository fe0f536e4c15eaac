"""Compares an answer with what the engines must have said.

Every difference is of one of four classes:

  class         examples
  ------------  --------------------------------------------------------------------------------
  lost          a success with too few words; a stream that ends without its finish, its [DONE] or
                an error; a request without any answer (judged by the caller, who knows the faults)
  duplicated    words twice, two ends of one choice, events after the end, a second execution
  corrupted     another text, another usage, JSON or events that cannot be read, a success of a
                request whose engine failed
  misdelivered  words or images of another request
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.soak.documents import check_document, check_messages, check_usage
from bench.soak.faces import Events, check_message_events, check_response_events
from bench.soak.pictures import check_picture, preview_brightness
from bench.soak.plan import GRPC, IMAGES, MESSAGES, RESPONSES, Plan
from bench.soak.words import Problem, check_text

CLASSES: Final = ("lost", "duplicated", "corrupted", "misdelivered")
# Statuses of the failures that a cue asks for: the request is refused, or the engine fails.
_STATUS_OF_CUE: Final = {"refuse": 400, "start": 500, "mid": 500, "late": 500}
# An event of a failed stream has the type of the error or, for a Response, its code.
_REFUSED: Final = ("event invalid_request_error", "event invalid_prompt")
_FAILED: Final = ("event server_error", "event api_error")
_RESPONSE_ID: Final = re.compile(r"resp_[0-9a-f]+")
_MADE_ID: Final = re.compile(rb'[{,]"id":"(resp_[0-9a-f]+)"')


@dataclass
class Answer:
    """The response that a client received for a request; it may be cut.

    Attributes:
        status: The HTTP status; None if none arrived. A direct call that ended has 200.
        body: The bytes of the body.
        messages: The messages of a direct call.
        complete: Whether the transport reports a complete body.
        cut: Why the body is not complete, or why there is no status.
        code: The gRPC status of a direct call that failed.
        cancelled: Whether the client itself cancelled the request.
        request_id: The x-request-id of the response.
        events: Whether the body is server-sent events.
        began, first, ended: Seconds of time.monotonic(): sent, first byte of the body, end.
    """

    status: int | None = None
    body: bytearray = field(default_factory=bytearray)
    messages: list[Any] = field(default_factory=list)
    complete: bool = False
    cut: str = ""
    code: str = ""
    cancelled: bool = False
    request_id: str = ""
    events: bool = False
    began: float = 0.0
    first: float = 0.0
    ended: float = 0.0


@dataclass
class Verdict:
    """The outcome of a request, and what is wrong with its answer.

    Attributes:
        outcome: "ok", "as cued" (it failed as its cue asks), "cancelled", "error" (a status or an
            event), "cut" (the connection ended within an answer) or "no answer".
        detail: The error, in a few words.
        problems: Differences, each with its class.
    """

    outcome: str
    detail: str = ""
    problems: list[Problem] = field(default_factory=list)


def _is_whole(plan: Plan) -> bool:
    """Whether the engine fails after the last part of a text, which succeeds nevertheless."""
    return plan.fail == "late" and plan.path != IMAGES


def judge(plan: Plan, answer: Answer) -> Verdict:
    """Compares an answer with its plan."""
    problems: list[Problem] = []
    if answer.status is not None and answer.request_id not in ("", plan.request_id):
        problems.append(("misdelivered", f"x-request-id {answer.request_id}"))
    if plan.path == GRPC:
        error = answer.code
        success = answer.complete and not error
        more = check_messages(plan, answer.messages, success=success)
    elif answer.status is None:
        error, more = "", []
    elif answer.status != 200:
        error, more = _judge_error(answer)
    elif answer.events:
        error, more = _judge_events(plan, answer)
    else:
        error, more = "", []
        if answer.complete:
            more = check_document(plan, bytes(answer.body))
    problems += more
    if error and _as_cued(plan, answer, error):
        return Verdict("as cued", error, problems)
    if error:
        return Verdict("error", error, problems)
    if answer.cancelled and not answer.complete:
        return Verdict("cancelled", "", problems)
    if not answer.complete:
        outcome = "no answer" if answer.status is None else "cut"
        return Verdict(outcome, answer.cut, problems)
    if plan.fail and not _is_whole(plan):
        problems.append(("corrupted", f"a success although the engine failed: {plan.fail}"))
    return Verdict("ok", "", problems)


def _as_cued(plan: Plan, answer: Answer, error: str) -> bool:
    if not plan.fail:
        return False
    if plan.path == GRPC:
        return error == ("INVALID_ARGUMENT" if plan.fail == "refuse" else "INTERNAL")
    wanted = _STATUS_OF_CUE[plan.fail]
    # Once a stream is open, an error is an event, which has no status but a type.
    kinds = _REFUSED if wanted == 400 else _FAILED
    lost = "was lost" in error or "overloaded" in error
    return (
        error.startswith(kinds) and not lost if answer.status == 200 else (answer.status == wanted)
    )


def _judge_error(answer: Answer) -> tuple[str, list[Problem]]:
    if not answer.complete:
        return "", []
    try:
        error = json.loads(answer.body)["error"]
        message = _RESPONSE_ID.sub("resp_...", error["message"])
        return f"status {answer.status}: {error['type']}: {message[:60]}", []
    except (ValueError, KeyError, TypeError):
        text = f"status {answer.status} with {bytes(answer.body[:80])!r}"
        return text, [("corrupted", text)]


def response_id(answer: Answer) -> str:
    """The id of the response that an answer of /v1/responses has."""
    found = _MADE_ID.search(answer.body)
    if found is None:
        raise ValueError(f"an answer without an id: {bytes(answer.body[:60])!r}")
    return found[1].decode()


def read_events(body: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """Splits server-sent events.

    Returns:
        Name ("" for none) and data of each event, and the rest after the last complete one.

    Raises:
        ValueError: A line is neither a comment nor a field that an answer may have.
    """
    *blocks, rest = body.split(b"\n\n")
    events = []
    for block in blocks:
        name, data = "", []
        for line in block.decode().split("\n"):
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)
            elif not line.startswith(":"):
                raise ValueError(f"no field of an event: {line[:60]!r}")
        if len(data) > 1:
            raise ValueError("an event has data twice")
        events += [(name, line) for line in data]
    return events, rest


def _judge_events(plan: Plan, answer: Answer) -> tuple[str, list[Problem]]:
    problems: list[Problem] = []
    try:
        events, rest = read_events(bytes(answer.body))
        parsed = [(name, json.loads(d) if d != "[DONE]" else None) for name, d in events]
        if rest and answer.complete:
            problems.append(("corrupted", f"the body ends within an event: {rest[:60]!r}"))
        failures = [at for at, (_, data) in enumerate(parsed) if _error_of(data)]
        # A failed response is followed by [DONE]; no other failure is followed by anything.
        rest_of = [(None,), ()] if plan.path == RESPONSES else [()]
        after = tuple(data for _, data in parsed[failures[0] + 1 :]) if failures else ()
        if after not in rest_of:
            problems.append(("duplicated", "an event follows the error"))
        success = answer.complete and not failures
        normal = [item for at, item in enumerate(parsed) if at not in failures]
        problems += _EVENT_CHECKS.get(plan.path, _check_chunks)(plan, normal, success)
        error = _error_of(parsed[failures[0]][1]) if failures else None
        kind = error.get("type") or error["code"] if error else ""
        text = f"event {kind}: {error['message'][:60]}" if error else ""
        return text, problems
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return "", [*problems, ("corrupted", f"unreadable events: {error!r}"[:150])]


def _error_of(data: Any) -> dict[str, Any] | None:
    """The error of an event: its own, or that of the response that failed."""
    if data is None:
        return None
    found: dict[str, Any] | None = data.get("error") or data.get("response", {}).get("error")
    return found


def _check_chunks(plan: Plan, events: Events, success: bool) -> Iterable[Problem]:
    texts = [""] * len(plan.choices)
    finishes: list[str] = [""] * len(plan.choices)
    ids, usage, done = set(), None, 0
    for _, data in events:
        if done:
            yield "duplicated", "an event follows [DONE]"
        if data is None:
            done += 1
            continue
        ids.add(data["id"])
        for choice in data["choices"]:
            index = choice["index"]
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text and finishes[index]:
                yield "duplicated", f"text of choice {index} after its end"
            texts[index] += text or ""
            if choice["finish_reason"]:
                if finishes[index]:
                    yield "duplicated", f"choice {index} ends twice"
                finishes[index] = choice["finish_reason"]
        if data.get("usage"):
            if usage:
                yield "duplicated", "two usages"
            usage = data["usage"]
    if len(ids) > 1:
        yield "misdelivered", f"chunks of {len(ids)} answers in one stream"
    for words, text, finish in zip(plan.choices, texts, finishes, strict=True):
        yield from check_text(words, text, complete=success or bool(finish))
        if success and not finish:
            yield "lost", "a stream without a finish_reason"
        if finish and finish != plan.finish:
            yield "corrupted", f"finish_reason {finish}, not {plan.finish}"
    if success and not done:
        yield "lost", "a stream without [DONE] and without an error"
    include = bool((plan.body or {}).get("stream_options"))
    if success and include != (usage is not None):
        yield "corrupted", f"usage {usage}"
    if usage is not None:
        yield from check_usage(plan, usage)


def _check_image_events(plan: Plan, events: Events, success: bool) -> Iterable[Problem]:
    completed: set[int] = set()
    previews: set[tuple[int, int]] = set()
    for name, data in events:
        index = data["index"]
        if data["type"] != name:
            yield "corrupted", f"event {name} of type {data['type']}"
        if index in completed:
            yield "duplicated", f"an event of image {index} after its end"
        if name == "image_generation.completed":
            completed.add(index)
            yield from check_picture(plan.seeds[index], data["seed"], data["b64_json"], 1.0)
            # Only the last image has the usage of the request; the others have zeros.
            wanted = plan.prompt_tokens if len(completed) == len(plan.seeds) else 0
            if data["usage"]["input_tokens"] != wanted:
                yield "corrupted", f"usage {data['usage']}"
            continue
        number = data["partial_image_index"]
        if (index, number) in previews:
            yield "duplicated", f"preview {number} of image {index}"
        previews.add((index, number))
        brightness = preview_brightness(number, plan.previews)
        yield from check_picture(plan.seeds[index], None, data["b64_json"], brightness)
    if success and len(completed) < len(plan.seeds):
        yield "lost", f"{len(completed)} images, not {len(plan.seeds)}"


_EVENT_CHECKS: Final = {
    IMAGES: _check_image_events,
    RESPONSES: check_response_events,
    MESSAGES: check_message_events,
}
