"""Compares answers of /v1/responses, /v1/messages, /tokenize and /detokenize with their plans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from bench.soak.plan import TOKENIZE, Plan
from bench.soak.words import Problem, check_text
from inference.engines.script import token_of

Events = list[tuple[str, Any]]
"""Name and data of each event; None for [DONE]."""
# The status of a response, and the stop_reason of a message, by the finish_reason of a chat.
_STATUSES: Final = {"stop": "completed", "length": "incomplete"}
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}


def check_response(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    """Compares a response object."""
    items = document["output"]
    if [item["type"] for item in items] != ["message"]:
        yield "corrupted", f"items {[item['type'] for item in items]}"
        return
    yield from check_text(plan.choices[0], items[0]["content"][0]["text"], complete=True)
    if document["status"] != _STATUSES[plan.finish]:
        yield "corrupted", f"status {document['status']} of {plan.finish}"
    previous = (plan.body or {}).get("previous_response_id")
    if plan.body is not None and document["previous_response_id"] != previous:
        yield "misdelivered", f"continues {document['previous_response_id']}, not {previous}"
    yield from _check_usage(plan, document["usage"])
    if document["usage"]["total_tokens"] != plan.prompt_tokens + plan.completion_tokens:
        yield "corrupted", f"usage {document['usage']}"


def check_message(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    """Compares a message of Anthropic's form."""
    blocks = document["content"]
    if [block["type"] for block in blocks] != ["text"]:
        yield "corrupted", f"blocks {[block['type'] for block in blocks]}"
        return
    yield from check_text(plan.choices[0], blocks[0]["text"], complete=True)
    yield from _check_stop(plan, document["stop_reason"])
    yield from _check_usage(plan, document["usage"])


def check_tokens(plan: Plan, document: dict[str, Any]) -> Iterable[Problem]:
    """Compares the tokens of a text, or the text of tokens."""
    if plan.path == TOKENIZE:
        wanted: Any = [token_of(word) for word in plan.inputs]
        found = document["tokens"]
        if document["count"] != len(found):
            yield "corrupted", f"a count of {document['count']} for {len(found)} tokens"
    else:
        wanted, found = " ".join(plan.inputs), document["prompt"]
    if found != wanted:
        yield "corrupted", f"tokens {str(found)[:60]}, not {str(wanted)[:60]}"


def check_response_events(plan: Plan, events: Events, success: bool) -> Iterable[Problem]:
    """Compares the events of a streamed response."""
    text, ended, done, next_number = "", None, 0, 0
    ids, whole = set(), None
    for name, data in events:
        if done or (ended is not None and data is not None):
            yield "duplicated", f"{name or 'data'} follows the end"
        if data is None:
            done += 1
            continue
        if data["type"] != name:
            yield "corrupted", f"event {name} of type {data['type']}"
        if (number := data["sequence_number"]) != next_number:
            kind = "lost" if number > next_number else "duplicated"
            yield kind, f"event {number} where {next_number} must be"
        next_number = number + 1
        if name == "response.output_text.delta":
            if whole is not None:
                yield "duplicated", "text after its end"
            text += data["delta"]
        elif name == "response.output_text.done":
            whole = data["text"]
        elif "response" in data:
            ids.add(data["response"]["id"])
            if name in ("response.completed", "response.incomplete"):
                ended = data["response"]
    if len(ids) > 1:
        yield "misdelivered", f"events of {len(ids)} responses in one stream"
    yield from check_text(plan.choices[0], text, complete=success or whole is not None)
    if whole is not None and whole != text:
        yield "corrupted", f"the whole text ends with {whole[-60:]!r}, not {text[-60:]!r}"
    if ended is not None:
        yield from check_response(plan, ended)
    if success and (ended is None or not done):
        yield "lost", "a stream without its end and without an error"


def check_message_events(plan: Plan, events: Events, success: bool) -> Iterable[Problem]:
    """Compares the events of a streamed message."""
    text, begun, stopped, reason, ended = "", 0, 0, None, 0
    for name, data in events:
        if ended:
            yield "duplicated", f"{name} follows the end"
        if data["type"] != name:
            yield "corrupted", f"event {name} of type {data['type']}"
        if name == "message_start":
            begun += 1
            if data["message"]["usage"]["input_tokens"] != plan.prompt_tokens:
                yield "corrupted", f"usage {data['message']['usage']}"
        elif name == "content_block_delta":
            if stopped:
                yield "duplicated", "text after its end"
            text += data["delta"]["text"]
        elif name == "content_block_stop":
            stopped += 1
        elif name == "message_delta":
            if reason is not None:
                yield "duplicated", "the message ends twice"
            reason = data["delta"]["stop_reason"]
            yield from _check_stop(plan, reason)
            yield from _check_usage(plan, data["usage"])
        elif name == "message_stop":
            ended += 1
    yield from check_text(plan.choices[0], text, complete=success or stopped > 0)
    if begun > 1 or stopped > 1:
        yield "duplicated", f"{begun} starts and {stopped} ends of a block"
    if success and not (begun and stopped and reason and ended):
        yield "lost", "a stream without its end and without an error"


def _check_stop(plan: Plan, reason: str) -> Iterable[Problem]:
    if reason != _STOP_REASONS[plan.finish]:
        yield "corrupted", f"stop_reason {reason} of {plan.finish}"


def _check_usage(plan: Plan, usage: dict[str, Any]) -> Iterable[Problem]:
    found = (usage["input_tokens"], usage["output_tokens"])
    if found != (plan.prompt_tokens, plan.completion_tokens):
        yield "corrupted", f"usage {found}, not {(plan.prompt_tokens, plan.completion_tokens)}"
