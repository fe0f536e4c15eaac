"""Where the output of one call waits for the network.

The engine puts output in and never waits. A writer takes out whatever is there, so a reader that
keeps up gets every token as its own message, and a slow one gets fewer and larger messages.

Outbox holds text. What waits is merged for each choice:

  text, reasoning                        joined
  tool calls, token ids, logprobs        appended, every entry kept
  finishes                               appended
  admitted, usage, timings,              set once
  prompt_logprobs

so merging never changes what a caller has after reading everything. Two cases are fast, since
nearly all output is one of them: text of choice 0 waits as a list of strings, and a single
message waits as it came.

MessageOutbox holds images and embeddings, which cannot be merged: each message leaves as it
came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from inference.errors import InferenceError
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse

# Bytes that one call may have waiting; a reader that is further behind counts as gone. A single
# message may be larger if nothing else waits: an answer in one message is.
MAX_WAITING_BYTES: Final = 1024 * 1024
# Bytes of one message of a call; below the transport's bound (server.py).
MAX_MERGED_BYTES: Final = 48 * 1024 * 1024
# Bytes of waiting previews; beyond it older previews of an image are dropped.
MAX_PREVIEW_BYTES: Final = 16 * 1024 * 1024


def _ignore(_size: int) -> None:
    """For an outbox whose reader does not wait for output."""


class Outbox:
    """The text of one call that has not been sent.

    Args:
        bounded: Whether the call ends when more than MAX_WAITING_BYTES wait. False for an answer
            that is collected whole: the context bounds that.

    Attributes:
        on_filled: Called with the size of each addition in bytes; may raise InferenceError.
        waiting_bytes: Bytes that wait.
    """

    __slots__ = (
        "_bounded",
        "_choices",
        "_has_deltas",
        "_lone",
        "_response",
        "_texts",
        "on_filled",
        "waiting_bytes",
    )

    def __init__(self, *, bounded: bool = True) -> None:
        self.on_filled: Callable[[int], None] = _ignore
        self._bounded = bounded
        # Text of choice 0. Once other deltas wait, text waits in `_choices`, behind them.
        self._texts: list[str] = []
        self._has_deltas = False
        # The only message that waits, as it came; its sender keeps it, so it is never changed.
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
        self.on_filled(size)

    def part(self, part: GenerateResponse) -> None:
        """Adds any other message. The caller must not change it afterwards.

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
        self.on_filled(size)

    def take_text(self) -> str | None:
        """Takes everything if it is nothing but text of choice 0; otherwise None, takes nothing."""
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
        """Drops everything."""
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
        if self.waiting_bytes > MAX_MERGED_BYTES:
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
    """The merged output of one choice.

    Strings are joined once at the end: a protobuf message keeps every value that a string field
    ever had until the message dies, so appending for each token would cost quadratic memory.
    """

    delta: ChoiceDelta
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)

    def joined(self) -> ChoiceDelta:
        self.delta.text = "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta


class MessageOutbox:
    """The messages of one image or embedding call that have not been sent.

    Progress and finished images are bounded by the request. Previews are bounded here: a reader
    that is far behind gets only the newest preview of an image.

    Attributes:
        on_filled: Called after each addition, with 0.
    """

    def __init__(self) -> None:
        self.on_filled: Callable[[int], None] = _ignore
        self._waiting: deque[GenerateImageResponse | EmbedResponse] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def text(self, text: str) -> None:
        """Never called: only text models make text."""
        raise NotImplementedError

    def part(self, part: GenerateImageResponse | EmbedResponse) -> None:
        """Adds a message. The caller must not change it afterwards."""
        if isinstance(part, GenerateImageResponse) and part.HasField("partial_image"):
            self._drop_older_previews(part.partial_image.index)
        self._waiting.append(part)
        self.on_filled(0)

    def take(self) -> GenerateImageResponse | EmbedResponse:
        """Takes the oldest message."""
        return self._waiting.popleft()

    def _drop_older_previews(self, image: int) -> None:
        previews = [
            part
            for part in self._waiting
            if isinstance(part, GenerateImageResponse) and part.HasField("partial_image")
        ]
        if sum(part.ByteSize() for part in previews) > MAX_PREVIEW_BYTES:
            for part in previews:
                if part.partial_image.index == image:
                    self._waiting.remove(part)
