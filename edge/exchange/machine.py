"""The exchange: one HTTP request, the calls that it needs, and the one response to it.

Chat, completions, embeddings, images and counts of tokens all use this state machine. It has no
socket, clock or task. Every method takes one event and returns the bytes (or the large event) to
send now, b"" for none. The runner (runner.py) acts on changes of `state`: it starts the hold timer
at ADMITTED, sends the 200 at OPEN, and ends the response and cancels the calls at DONE or FAILED.

A request has one or more sources, one for each call to the inference service. A source's first
message carries `admitted`: the service has checked the request and holds a permit for it. Output
follows, and an end with a status.

Why a stream waits. After the 200 is sent, a failure can only be an event inside the stream, and
most clients handle a status better. So the 200 is held until every source is admitted, and then
for at most `header_hold_seconds` more, until the first output. A failure before that gets its
true status. A plain response is one document, so it is held until the last source has ended, and
no timer runs.

  state     event                        next        effect
  --------  ---------------------------  ----------  -------------------------------------------
  WAITING   admission of the last source ADMITTED    stream: the runner starts the hold timer
  WAITING   output                       WAITING     stream: hold it; plain: collect it
  ADMITTED  output                       OPEN        stream: return opening, held and new output
                                         ADMITTED    plain: collect it
  ADMITTED  hold expired                 OPEN        stream: return the opening
  WAITING,  end of the last source       DONE        stream: return opening, held output, closing
  ADMITTED                                           plain: the handler renders the document
  OPEN      output                       OPEN        return it: one call from session to socket
  OPEN      end of the last source       DONE        return the closing events
  WAITING,  failure of a source          FAILED      the runner raises `error`: a true status
  ADMITTED
  OPEN      failure of a source          FAILED      return one error event, never [DONE]
  not over  abandoned (client gone)      DONE        nothing is left to send
  DONE,     anything                     the same    nothing: late output is dropped
  FAILED

A failure is the end of a source with a status other than OK, a deadline included, or an error of
the edge itself (`fail`). Rate limits arrive with admissions and with failures; `rate_limits`
keeps the lowest of each kind, because all sources of a request use one allowance.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Final, Generic, TypeVar, cast

from google.rpc.status_pb2 import Status
from msgspec import Struct

from contract.request_metrics import Spent
from edge.openai.errors import OpenAIError
from edge.openai.errors.rpc_status import from_rpc_status
from edge.openai.pieces import Output
from edge.openai.translator import SourceTranslator, StreamTranslator, Translator
from edge.upstream.transport import UpstreamPart
from isthmus.v1.tokenize_pb2 import TokenizeResponse
from isthmus.v1.usage_pb2 import RateLimits, Timings, Usage

_NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
# The rate limits of a request that has none; it is never changed.
NO_LIMITS: Final = RateLimits()
Part = TypeVar("Part", bound=UpstreamPart)


class State(enum.Enum):
    """The state of an exchange; the table above lists the transitions."""

    WAITING = enum.auto()
    ADMITTED = enum.auto()
    OPEN = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


# Read for each token: an enum's members are slower to read than globals.
OPEN: Final = State.OPEN
_OVER: Final = (State.DONE, State.FAILED)


class Exchange(Generic[Part]):
    """The state machine.

    Args:
        translator: Makes the response. A StreamTranslator makes the response a stream.
        sources: Number of calls that the request needs, at least 1.
        names: The service's parameter names, each with the name that the client used; for
            errors.
        list_name: The parameter whose list has an entry for each source; "" if there is none.

    Attributes:
        state: See the table above.
        opened: Whether it was OPEN before it ended.
        error: The error if it FAILED.
        rate_limits: Remaining limits of the client's key.
        spent: What its calls have used, of those that have told; None for none.
        sources: One entry for each call; the runner feeds them.
    """

    opened = False
    error: OpenAIError | None = None
    rate_limits = NO_LIMITS
    spent: Spent | None = None

    def __init__(
        self,
        translator: Translator[Part],
        sources: int = 1,
        names: Mapping[str, str] = _NO_NAMES,
        list_name: str = "",
    ) -> None:
        self.state = State.WAITING
        self.sources: list[Source[Part]] = []
        for number in range(sources):
            source = translator.source(number)
            self.sources.append(Source(self, source, source.text))
        self._stream: StreamTranslator[Part] | None = None
        if translator.is_stream:
            self._stream = cast("StreamTranslator[Part]", translator)
        self._names = names
        self._list_name = list_name
        self._not_admitted = self._not_ended = sources
        self._held: list[Output] = []

    def __repr__(self) -> str:
        return (
            f"<Exchange {self.state.name} waits for {self._not_admitted} admissions, "
            f"{self._not_ended} ends>"
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will be sent."""
        return self.state in _OVER

    def hold_expired(self) -> Output:
        """Event: the hold timer has ended."""
        return self._open() if self.state is State.ADMITTED else b""

    def fail(self, error: OpenAIError) -> Output:
        """Event: a source, or the edge itself, has failed."""
        if self.state in _OVER:
            return b""
        self._limit(error.rate_limits)
        error.rate_limits = self.rate_limits
        self.error = error
        self.state = State.FAILED
        return self._stream.failed(error) if self._stream is not None and self.opened else b""

    def abandon(self) -> None:
        """Event: the client has disconnected."""
        if not self.over:
            self.state = State.DONE

    def raise_error(self) -> None:
        """Raises the error if it FAILED, and forgets it.

        Its traceback refers to the exchange: Python would keep the megabytes of a response until
        its next collection.
        """
        if errors := [self.error] if self.error is not None else []:
            self.error = None
            raise errors.pop()

    def _admitted(self) -> None:
        self._not_admitted -= 1
        if not self._not_admitted and self.state is State.WAITING:
            self.state = State.ADMITTED

    def _limit(self, limits: RateLimits) -> None:
        if self.rate_limits is NO_LIMITS:
            self.rate_limits = RateLimits()
        keep_lowest(self.rate_limits, limits)

    def _spend(self, usage: Usage, timings: Timings) -> None:
        first = (timings.queue_ms + timings.first_output_ms) / 1000
        last = timings.total_ms / 1000
        spent = self.spent
        if spent is None:
            self.spent = Spent(usage.prompt_tokens, usage.completion_tokens, first, last)
            return
        spent.input_tokens += usage.prompt_tokens
        spent.output_tokens += usage.completion_tokens
        spent.first_seconds = min(spent.first_seconds, first)
        spent.last_seconds = max(spent.last_seconds, last)

    def _output(self, output: Output) -> Output:
        if self.state is OPEN:
            return output
        if output:
            self._held.append(output)
        return self._open() if self._held and self.state is State.ADMITTED else b""

    def _ended(self) -> Output:
        self._not_ended -= 1
        if self._not_ended:
            return b""
        if self._stream is None:
            self.state = State.DONE
            return b""
        opening = b"" if self.opened else self._open()
        try:
            closing = self._stream.closing()
            self.state = State.DONE
        except OpenAIError as error:
            closing = self.fail(error)
        return opening + closing

    def _open(self) -> Output:
        if self._stream is None:
            return b""
        self.state, self.opened = State.OPEN, True
        held, self._held = self._held, []
        return reduce(add, held, self._stream.opening())


class Source(Struct, Generic[Part], eq=False):
    """One call of an exchange.

    Attributes:
        translate: Makes the output of plain text while the exchange is OPEN; the runner calls it
            for each token without a detour.
        admitted: Whether the service has admitted it.
    """

    # A struct would print its members, the prompt among them.
    __repr__ = object.__repr__

    _exchange: Exchange[Part]
    _translator: SourceTranslator[Part]
    translate: Callable[[str], Output]
    admitted: bool = False

    def text(self, text: str) -> Output:
        """Plain text of choice 0."""
        exchange = self._exchange
        if exchange.state in _OVER:
            return b""
        if not self.admitted:
            self._translator.admit(None)
        return exchange._output(self.translate(text))

    def part(self, part: Part) -> Output:
        """Event: any other message of the service."""
        exchange = self._exchange
        if exchange.state in _OVER:
            return b""
        if not self.admitted and (admitted := self._translator.admit(part)) is not None:
            self.admitted = True
            if admitted.HasField("rate_limits"):
                exchange._limit(admitted.rate_limits)
            exchange._admitted()
        # A count of tokens has no usage.
        if not isinstance(part, TokenizeResponse) and part.HasField("usage"):
            exchange._spend(part.usage, part.timings)
        return exchange._output(self._translator.part(part))

    def end(self, status: Status) -> Output:
        """Event: the call has ended."""
        exchange = self._exchange
        if exchange.state in _OVER:
            return b""
        if status.code:
            error = from_rpc_status(status, admitted=self.admitted)
            error = error.in_terms_of(exchange._names)
            if exchange._list_name:
                error = error.of_entry(exchange._list_name, exchange.sources.index(self))
            return exchange.fail(error)
        return exchange._ended()


def keep_lowest(limits: RateLimits, others: RateLimits) -> None:
    """Copies each limit of `others` into `limits` that has as little remaining, or less.

    The calls of one request share the key's allowance, so the lowest remainder is the latest.
    """
    for kind in ("requests", "tokens"):
        kept, other = getattr(limits, kind), getattr(others, kind)
        if others.HasField(kind) and (
            not limits.HasField(kind) or other.remaining <= kept.remaining
        ):
            kept.CopyFrom(other)
