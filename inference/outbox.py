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

    __slots__ = (
        "_bounded",
        "_choices",
        "_has_deltas",
        "_lone",
        "_response",
        "_texts",
        "waiting_bytes",
    )

    def __init__(self, *, bounded: bool = True) -> None:
        self._bounded = bounded
        # Text of choice 0; behind deltas of parts it waits in `_choices` instead.
        self._texts: list[str] = []
        self._has_deltas = False
        # The only part so far, as it came: most leave before another comes. Not ours to change.
        self._lone: GenerateResponse | None = None
        self._response: GenerateResponse | None = None
        self._choices: dict[int, _Waiting] = {}
        self.waiting_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._texts) or self._lone is not None or self._response is not None

    def text(self, text: str) -> None:
        """Adds plain text of choice 0.

        Raises:
            InferenceError: The reader is too far behind.
        """
        if self._has_deltas:
            self._merge_lone()
            self._choice(0).texts.append(text)
        else:
            self._texts.append(text)
        size = len(text)
        self.waiting_bytes += size
        if self.waiting_bytes > MAX_WAITING_BYTES:
            self._check_waiting(size)

    def part(self, part: GenerateResponse) -> int:
        """Adds anything else, which nobody changes from now on; returns its size in bytes.

        Raises:
            InferenceError: The reader is too far behind.
        """
        if self:
            self._merge_lone()
            self._merge(part)
        else:
            self._lone = part
            self._has_deltas = bool(part.deltas)
        size = part.ByteSize()
        self.waiting_bytes += size
        if self.waiting_bytes > MAX_WAITING_BYTES:
            self._check_waiting(size)
        return size

    def take_text(self) -> str | None:
        """Takes everything if it is plain text and nothing else, otherwise takes nothing."""
        if not self._texts or self._lone is not None or self._response is not None:
            return None
        text = "".join(self._texts)
        self._texts = []
        self.waiting_bytes = 0
        return text

    def take(self) -> GenerateResponse:
        """Takes everything as one message."""
        if self._lone is not None and not self._texts:
            response, self._lone = self._lone, None
        else:
            self._merge_lone()
            response = self._response or GenerateResponse()
            for index in sorted(self._choices):
                response.deltas.append(self._choices[index].joined())
            if self._texts:
                response.deltas.add(index=0, text="".join(self._texts))
                self._texts = []
            self._response = None
            self._choices = {}
        self._has_deltas = False
        self.waiting_bytes = 0
        return response

    def clear(self) -> None:
        """Forgets everything."""
        self.take()

    def _merge_lone(self) -> None:
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._merge(lone)

    def _merge(self, part: GenerateResponse) -> None:
        response = self._response
        if response is None:
            response = self._response = GenerateResponse()
        if not part.deltas:
            response.MergeFrom(part)
            return
        self._has_deltas = True
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

    def _choice(self, index: int) -> _Waiting:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Waiting(ChoiceDelta(index=index))
        return choice

    def _check_waiting(self, last_size: int) -> None:
        if self.waiting_bytes > MAX_MESSAGE_BYTES:
            self.clear()
            raise InferenceError(
                "invalid_request_error", "The answer is too large for one message; stream it."
            )
        # A single part may be larger.
        if self._bounded and self.waiting_bytes > last_size:
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
