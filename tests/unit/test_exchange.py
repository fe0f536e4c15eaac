"""The exchange: every cell of its table, and any order of events.

The translator is a stand-in, so that each test reads as the table does: opening is "<", each
output is itself, closing is ">".
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from contract.request_metrics import Spent
from edge.exchange.machine import Exchange, State, keep_lowest
from edge.openai.errors import OpenAIError, internal_error, overloaded
from edge.openai.translator import StreamTranslator, Translator
from inference.errors import InferenceError, to_rpc_status
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.tokenize_pb2 import TokenizeResponse
from isthmus.v1.usage_pb2 import Admitted, RateLimit, RateLimits, Timings, Usage

OK = Status()
LOST = Status(code=Code.UNAVAILABLE)


@dataclass
class Part:
    """A message of the service."""

    output: bytes = b""
    admitted: Admitted | None = None

    def ByteSize(self) -> int:  # noqa: N802 - the name of protobuf
        return len(self.output)

    def HasField(self, name: str) -> bool:  # noqa: N802
        return name == "admitted" and self.admitted is not None


ADMITTED = Part(admitted=Admitted())


class Document(Translator[Part]):
    def __init__(self) -> None:
        self.collected = b""

    def source(self, _number: int) -> Document:
        return self

    def admit(self, part: Part | None) -> Admitted | None:
        return None if part is None else part.admitted

    def text(self, text: str) -> bytes:
        self.collected += text.encode()
        return b""

    def part(self, part: Part) -> bytes:
        self.collected += part.output
        return b""


class Stream(StreamTranslator[Part]):
    def __init__(self, incomplete: bool = False) -> None:
        self._incomplete = incomplete

    def source(self, _number: int) -> Stream:
        return self

    def admit(self, part: Part | None) -> Admitted | None:
        return None if part is None else part.admitted

    def opening(self) -> bytes:
        return b"<"

    def text(self, text: str) -> bytes:
        return text.encode()

    def part(self, part: Part) -> bytes:
        return part.output

    def closing(self) -> bytes:
        if self._incomplete:
            raise internal_error()
        return b">"


def in_state(state: State, sources: int = 1) -> Exchange[Part]:
    """A stream in a state."""
    exchange = Exchange(Stream(), sources)
    if state is not State.WAITING:
        for source in exchange.sources:
            source.part(ADMITTED)
    if state is State.OPEN:
        assert exchange.hold_expired() == b"<"
    elif state is State.DONE:
        for source in exchange.sources:
            source.end(OK)
    elif state is State.FAILED:
        exchange.fail(overloaded())
    assert exchange.state is state
    return exchange


def is_error_event(output: object) -> bool:
    return isinstance(output, bytes) and output.startswith(b'data: {"error":')


# Streams


def test_stream_holds_output_until_the_last_source_is_admitted() -> None:
    exchange = in_state(State.WAITING, sources=2)
    first, second = exchange.sources
    first.part(ADMITTED)
    assert first.text("a") == b""
    assert exchange.state is State.WAITING
    assert second.part(Part(b"b", Admitted())) == b"<ab"
    assert exchange.state is State.OPEN


def test_admission_alone_does_not_open_a_stream() -> None:
    exchange = in_state(State.ADMITTED)
    assert not exchange.opened


@pytest.mark.parametrize("state", [State.WAITING, State.OPEN, State.DONE, State.FAILED])
def test_hold_timer_has_no_effect_outside_admitted(state: State) -> None:
    exchange = in_state(state)
    assert exchange.hold_expired() == b""
    assert exchange.state is state


def test_expired_hold_opens_a_stream_without_output() -> None:
    exchange = in_state(State.ADMITTED)
    assert exchange.hold_expired() == b"<"
    assert exchange.state is State.OPEN


@pytest.mark.parametrize("as_text", [True, False])
def test_first_output_opens_a_stream(as_text: bool) -> None:
    exchange = in_state(State.ADMITTED)
    (source,) = exchange.sources
    assert (source.text("a") if as_text else source.part(Part(b"a"))) == b"<a"
    assert exchange.state is State.OPEN
    assert (source.text("b") if as_text else source.part(Part(b"b"))) == b"b"


def test_message_without_output_does_not_open_a_stream() -> None:
    exchange = in_state(State.ADMITTED)
    assert exchange.sources[0].part(Part()) == b""
    assert exchange.state is State.ADMITTED


@pytest.mark.parametrize(
    ("state", "output"), [(State.WAITING, b"<>"), (State.ADMITTED, b"<>"), (State.OPEN, b">")]
)
def test_end_of_the_last_source_closes_a_stream(state: State, output: bytes) -> None:
    exchange = in_state(state, sources=2)
    first, second = exchange.sources
    assert first.end(OK) == b""
    assert not exchange.over
    assert second.end(OK) == output
    assert (exchange.state, exchange.opened) == (State.DONE, True)


@pytest.mark.parametrize("state", [State.WAITING, State.ADMITTED])
def test_failure_before_the_200_is_a_status(state: State) -> None:
    exchange = in_state(state)
    assert exchange.sources[0].end(LOST) == b""
    assert (exchange.state, exchange.opened) == (State.FAILED, False)
    assert exchange.error is not None
    assert exchange.error.status == 503


def test_failure_after_the_200_is_one_error_event() -> None:
    exchange = in_state(State.OPEN, sources=2)
    first, second = exchange.sources
    assert is_error_event(first.end(LOST))
    assert exchange.state is State.FAILED
    assert second.end(LOST) == b""


def test_incomplete_output_is_an_error_event_instead_of_the_closing() -> None:
    exchange = Exchange(Stream(incomplete=True))
    (source,) = exchange.sources
    source.part(Part(b"a", Admitted()))
    assert is_error_event(source.end(OK))
    assert exchange.state is State.FAILED


def test_incomplete_output_before_the_200_opens_the_stream_and_reports_the_error() -> None:
    exchange = Exchange(Stream(incomplete=True))
    output = exchange.sources[0].end(OK)
    assert isinstance(output, bytes)
    assert output.startswith(b"<")
    assert is_error_event(output[1:])


@pytest.mark.parametrize("state", [State.DONE, State.FAILED])
def test_late_events_are_dropped(state: State) -> None:
    exchange = in_state(state)
    (source,) = exchange.sources
    error = exchange.error
    late = [source.text("a"), source.part(Part(b"a", Admitted())), source.end(OK), source.end(LOST)]
    assert [*late, exchange.fail(internal_error())] == [b""] * 5
    exchange.abandon()
    assert (exchange.state, exchange.error) == (state, error)


@pytest.mark.parametrize("state", [State.WAITING, State.ADMITTED, State.OPEN])
def test_abandoned_exchange_is_done_and_sends_nothing_more(state: State) -> None:
    exchange = in_state(state)
    exchange.abandon()
    assert exchange.state is State.DONE
    assert exchange.sources[0].text("a") == b""


# Plain responses


def test_plain_response_never_opens() -> None:
    translator = Document()
    exchange = Exchange(translator, 2)
    first, second = exchange.sources
    outputs = [first.part(ADMITTED), first.text("a"), second.part(Part(b"b", Admitted()))]
    outputs += [exchange.hold_expired(), first.end(OK), second.end(OK)]
    assert outputs == [b""] * 6
    assert (exchange.state, exchange.opened) == (State.DONE, False)
    assert translator.collected == b"ab"


def test_plain_response_fails_with_its_first_source() -> None:
    exchange = Exchange(Document(), 2)
    first, second = exchange.sources
    first.part(ADMITTED)
    assert second.end(LOST) == b""
    assert exchange.state is State.FAILED
    assert first.end(OK) == b""
    assert exchange.state is State.FAILED


class Noting(Stream):
    """Notes each question for the admission."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Part | None] = []

    def source(self, _number: int) -> Noting:
        return self

    def admit(self, part: Part | None) -> Admitted | None:
        self.asked.append(part)
        return super().admit(part)


def test_translator_is_asked_for_the_admission_up_to_the_first() -> None:
    translator = Noting()
    (source,) = Exchange(translator).sources
    assert source.text("early") == b""
    empty = Part()
    assert source.part(empty) == b""
    assert not source.admitted
    assert source.part(ADMITTED) == b"<early"
    assert source.admitted
    source.text("a")
    source.part(Part(b"b"))
    assert translator.asked == [None, empty, ADMITTED]


def test_exchange_shows_its_state() -> None:
    exchange = Exchange(Stream(), 2)
    exchange.sources[0].part(ADMITTED)
    assert repr(exchange) == "<Exchange WAITING waits for 1 admissions, 2 ends>"


# What an error carries


def limits(remaining: int, reset_ms: int = 0) -> RateLimits:
    return RateLimits(requests=RateLimit(limit=9, remaining=remaining, reset_ms=reset_ms))


def test_lowest_rate_limits_of_admissions_and_failures_are_kept() -> None:
    exchange = Exchange(Stream(), 3)
    for source, remaining in zip(exchange.sources, (5, 3, 4), strict=True):
        source.part(Part(admitted=Admitted(rate_limits=limits(remaining))))
    assert exchange.rate_limits == limits(3)
    exchange.fail(OpenAIError(429, "Too many.", rate_limits=limits(2)))
    assert exchange.error is not None
    assert exchange.error.rate_limits == exchange.rate_limits == limits(2)


def test_error_without_rate_limits_gets_those_of_the_admission() -> None:
    exchange = Exchange(Stream())
    exchange.sources[0].part(Part(admitted=Admitted(rate_limits=limits(3))))
    exchange.fail(OpenAIError(500, "Broken."))
    assert exchange.error is not None
    assert exchange.error.rate_limits == limits(3)


@pytest.mark.parametrize(
    ("list_name", "param", "theirs"),
    [("prompt", "text", "prompt[1]"), ("prompt", "seed", "seed"), ("", "text", "prompt")],
)
def test_error_names_the_entry_of_the_list_only_if_there_is_one(
    list_name: str, param: str, theirs: str
) -> None:
    exchange = Exchange(Stream(), 2, {"text": "prompt"}, list_name)
    refusal = InferenceError("invalid_value", f"'{param}' is wrong.", param=param)
    exchange.sources[1].end(to_rpc_status(refusal))
    assert exchange.error is not None
    assert (exchange.error.status, exchange.error.param) == (400, theirs)
    assert exchange.error.message == f"'{theirs}' is wrong."


def test_of_equal_rate_limits_the_later_is_kept() -> None:
    kept = limits(3, reset_ms=100)
    keep_lowest(kept, limits(3, reset_ms=90))
    assert kept == limits(3, reset_ms=90)


# Any order


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_events_keeps_the_invariants(seed: int) -> None:
    """Opening once and first, closing or error event once and last, output of each in order."""
    dice = random.Random(seed)
    count = dice.randint(1, 3)
    exchange = Exchange(Stream(), count)
    script = [
        [ADMITTED, *("ab"[: dice.randint(0, 2)]), dice.choice([OK, OK, OK, LOST])]
        for _ in range(count)
    ]
    sent: list[object] = []
    while any(script):
        number = dice.choice([i for i, events in enumerate(script) if events])
        event, source = script[number].pop(0), exchange.sources[number]
        if isinstance(event, Part):
            sent.append(source.part(event))
        elif isinstance(event, str):
            sent.append(source.text(event))
        else:
            sent.append(source.end(event))
        if dice.random() < 0.2:
            sent.append(exchange.hold_expired())
    assert exchange.over
    body = b"".join(part for part in sent if isinstance(part, bytes))
    if exchange.state is State.DONE:
        assert body.startswith(b"<")
        assert body.endswith(b">")
        assert body.count(b"<") == body.count(b">") == 1
    elif exchange.opened:
        assert body.startswith(b"<")
        head, _, error = body.partition(b"data: ")
        assert error.startswith(b'{"error":')
        assert b">" not in head
    else:
        assert body == b""
        assert exchange.error is not None


def test_error_is_raised_once() -> None:
    exchange = Exchange(Document(), 1)
    exchange.raise_error()
    exchange.fail(internal_error())
    with pytest.raises(OpenAIError):
        exchange.raise_error()
    exchange.raise_error()


# Tokens and seconds of a request


class Counting(Document):
    """Takes the service's own messages."""

    def admit(self, part: object) -> Admitted | None:
        return None

    def part(self, part: object) -> bytes:
        return b""


def spending(*parts: object) -> Spent | None:
    """The tokens and seconds counted after each part came, each from a source of its own."""
    exchange: Exchange[Any] = Exchange(Counting(), len(parts))
    for source, part in zip(exchange.sources, parts, strict=True):
        source.part(part)
    return exchange.spent


def used(prompt: int, completion: int, queue: float, first: float, total: float) -> Any:
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
    timings = Timings(queue_ms=queue, first_output_ms=first, total_ms=total)
    return GenerateResponse(usage=usage, timings=timings)


def test_request_spends_tokens_and_seconds() -> None:
    assert spending(GenerateResponse(admitted=Admitted())) is None
    assert spending(used(3, 7, 500.0, 250.0, 2000.0)) == Spent(3, 7, 0.75, 2.0)


def test_several_sources_spend_together_from_the_first_output_to_the_last() -> None:
    early, late = used(3, 7, 500.0, 250.0, 2000.0), used(4, 8, 1000.0, 500.0, 4000.0)
    assert spending(early, late) == Spent(7, 15, 0.75, 4.0)
    assert spending(late, early) == Spent(7, 15, 0.75, 4.0)


def test_count_of_tokens_spends_nothing() -> None:
    assert spending(TokenizeResponse(count=3)) is None
