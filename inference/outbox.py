"""Output that waits for the network, merged so that a slow reader costs memory, never order.

The engine loop puts in and never waits; a writer takes out whatever there is. Text of the same
choice that waits together leaves together; log probabilities, tool calls and finishes are kept
one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from inference.errors import InferenceError
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse

# What one call may have waiting before it is ended: a reader this far behind is gone. A single
# part may be larger when nothing else waits: answers in one message are.
MAX_WAITING_BYTES: Final = 1024 * 1024
# What one message may hold; above it lies the limit of the transport.
MAX_MESSAGE_BYTES: Final = 48 * 1024 * 1024


class Outbox:
    """What one call has yet to say.

    Args:
        bounded: Whether output that nobody takes ends the call. Not for an answer that is
            collected whole: the context already bounds that.
    """

    __slots__ = ("_bounded", "_choices", "_response", "_texts", "waiting_bytes")

    def __init__(self, *, bounded: bool = True) -> None:
        self._bounded = bounded
        self._texts: list[str] = []
        self._response: GenerateResponse | None = None
        self._choices: dict[int, _Waiting] = {}
        self.waiting_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._texts) or self._response is not None

    def text(self, text: str) -> None:
        """Adds plain text of choice 0.

        Raises:
            InferenceError: The reader is too far behind.
        """
        if self._response is None:
            self._texts.append(text)
        else:
            self._choice(0).texts.append(text)
        self._account(len(text))

    def part(self, part: GenerateResponse) -> None:
        """Adds anything else.

        Raises:
            InferenceError: The reader is too far behind.
        """
        response = self._response
        if response is None:
            response = self._response = GenerateResponse()
            if self._texts:
                self._choice(0).texts.extend(self._texts)
                self._texts = []
        for delta in part.deltas:
            waiting = self._choice(delta.index)
            waiting.texts.append(delta.text)
            waiting.reasoning.append(delta.reasoning)
            waiting.delta.tool_calls.extend(delta.tool_calls)
            waiting.delta.token_ids.extend(delta.token_ids)
            if delta.HasField("logprobs"):
                waiting.delta.logprobs.tokens.extend(delta.logprobs.tokens)
        response.finishes.extend(part.finishes)
        for name in ("admitted", "usage", "timings", "prompt_logprobs"):
            if part.HasField(name):
                getattr(response, name).CopyFrom(getattr(part, name))
        self._account(part.ByteSize())

    def take_text(self) -> str | None:
        """Takes everything if it is plain text and nothing else, otherwise takes nothing."""
        if self._response is not None or not self._texts:
            return None
        text = "".join(self._texts)
        self._texts = []
        self.waiting_bytes = 0
        return text

    def take(self) -> GenerateResponse:
        """Takes everything as one message."""
        if self._texts:
            self._choice(0).texts.extend(self._texts)
            self._texts = []
        response = self._response or GenerateResponse()
        for index in sorted(self._choices):
            response.deltas.append(self._choices[index].joined())
        self._response = None
        self._choices = {}
        self.waiting_bytes = 0
        return response

    def clear(self) -> None:
        """Forgets everything."""
        self.take()

    def _choice(self, index: int) -> _Waiting:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Waiting(ChoiceDelta(index=index))
        return choice

    def _account(self, size: int) -> None:
        behind = self._bounded and self.waiting_bytes > 0
        self.waiting_bytes += size
        if self.waiting_bytes > MAX_MESSAGE_BYTES:
            self.clear()
            raise InferenceError(
                "invalid_request_error", "The answer is too large for one message; stream it."
            )
        if behind and self.waiting_bytes > MAX_WAITING_BYTES:
            self.clear()
            raise InferenceError("slow_reader", "The caller does not read its answer fast enough.")


@dataclass(slots=True)
class _Waiting:
    """What one choice has to say.

    Its strings are joined only at the end: a message keeps every value that a field of it ever
    had until it dies, so that adding to one for each token costs memory quadratically.
    """

    delta: ChoiceDelta
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)

    def joined(self) -> ChoiceDelta:
        self.delta.text = "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta
