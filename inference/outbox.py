"""Buffers for the output of one call that the network has not taken yet.

The engine adds output and never waits. A writer takes all buffered output at once, so a fast
reader gets every token as its own message, and a slow one gets fewer and larger messages.

Outbox holds text. Waiting output is merged for each choice:

  text, reasoning                        joined
  tool calls, token ids, logprobs        appended, every entry kept
  finishes                               appended
  admitted, usage, timings,              set once
  prompt_logprobs

so merging never changes the total output that a caller reads. Two cases are fast, because nearly
all output is one of them: text of choice 0 is kept as a list of strings, and a single message is
kept unchanged.

MessageOutbox holds images, embeddings and tokens, which cannot be merged: each message is sent
unchanged.

Both count unsent output in the memory budget of the process (contract/memory.py): text above
SMALL_BYTES, all images and all tokens. Vectors count from the start of their call (serve.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from contract.memory import SMALL_BYTES, UNBOUNDED, Holding, MemorySpentError
from inference.errors import InferenceError, memory_spent
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.tokenize_pb2 import TokenizeResponse

_Message = GenerateImageResponse | EmbedResponse | TokenizeResponse

# Waiting bytes of one call; an addition to more than these ends the call with slow_reader. A single
# message may be larger, for example a whole response whose admission still waits.
MAX_WAITING_BYTES: Final = 1024 * 1024
# Bytes of one message of a call; below the transport's limit (server.py).
MAX_MERGED_BYTES: Final = 48 * 1024 * 1024
# Bytes of waiting previews; beyond it older previews of an image are dropped.
MAX_PREVIEW_BYTES: Final = 16 * 1024 * 1024


class Outbox:
    """The unsent text of one call.

    Args:
        holding: What the call holds of the memory budget; None counts nothing.
        bounded: Whether the call ends when more than MAX_WAITING_BYTES wait. False for a response
            that is collected whole, which the context bounds.

    Attributes:
        holding: What the call holds of the memory budget.
        on_filled: Called with the size of each addition in bytes, negative for output that is
            dropped because the call ends; may raise InferenceError. None if nobody waits for
            output.
        waiting_bytes: Bytes of unsent output.
    """

    __slots__ = (
        "_bounded",
        "_choices",
        "_counted",
        "_has_deltas",
        "_lone",
        "_response",
        "_taken",
        "_texts",
        "holding",
        "on_filled",
        "waiting_bytes",
    )

    def __init__(self, holding: Holding | None = None, *, bounded: bool = True) -> None:
        self.holding = holding or Holding(UNBOUNDED)
        # Bytes in `holding`: of waiting output, and of output that was taken and not yet sent.
        self._counted = self._taken = 0
        self.on_filled: Callable[[int], None] | None = None
        self._bounded = bounded
        # Text of choice 0. While other deltas wait, text is added to `_choices`, after them.
        self._texts: list[str] = []
        self._has_deltas = False
        # The only waiting message. It is never changed, because its sender keeps it.
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
        if self.waiting_bytes > SMALL_BYTES:
            self._check_waiting(size)
        if self.on_filled is not None:
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
        if self.waiting_bytes > SMALL_BYTES:
            self._check_waiting(size)
        if self.on_filled is not None:
            self.on_filled(size)

    def take_text(self) -> str | None:
        """Takes all output if it is only text of choice 0; otherwise takes nothing: None."""
        if not self._texts or self._lone is not None or self._response is not None:
            return None
        text = "".join(self._texts)
        self._texts = []
        self._note_taken()
        return text

    def take(self) -> GenerateResponse:
        """Takes all output as one message."""
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
        self._note_taken()
        return response

    def sent(self) -> None:
        """Returns to the memory budget what the output held that was taken."""
        if self._taken:
            self.holding.count(-self._taken)
            self._taken = 0

    def clear(self) -> None:
        """Drops everything."""
        self.take()
        self.sent()

    def _note_taken(self) -> None:
        self._taken += self._counted
        self._counted = self.waiting_bytes = 0

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
        before = self.waiting_bytes - last_size
        if self.waiting_bytes > MAX_MERGED_BYTES:
            self._drop(before)
            raise InferenceError(
                "invalid_request_error", "The answer is too large for one message; stream it."
            )
        if self._bounded and before > MAX_WAITING_BYTES:
            self._drop(before)
            raise InferenceError("slow_reader", "The caller does not read its answer fast enough.")
        try:
            self.holding.add(self.waiting_bytes - self._counted)
        except MemorySpentError as error:
            self._drop(before)
            raise memory_spent() from error
        self._counted = self.waiting_bytes

    def _drop(self, counted: int) -> None:
        self.clear()
        if self.on_filled is not None:
            self.on_filled(-counted)


@dataclass(slots=True)
class _Waiting:
    """The merged output of one choice.

    Strings are joined once at the end: a protobuf message keeps every earlier value of a string
    field until the message is freed, so appending each token would use quadratic memory.
    """

    delta: ChoiceDelta
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)

    def joined(self) -> ChoiceDelta:
        self.delta.text = "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta


class MessageOutbox:
    """The unsent messages of one call for images, vectors or tokens.

    The request bounds progress and finished images. MAX_PREVIEW_BYTES bounds previews: a slow
    reader gets only the newest preview of an image.

    Args:
        holding: As for Outbox.

    Attributes:
        holding: What the call holds of the memory budget.
        on_filled: Called after each addition, with 0.
    """

    def __init__(self, holding: Holding | None = None) -> None:
        self.holding = holding or Holding(UNBOUNDED)
        self._taken = 0
        self.on_filled: Callable[[int], None] | None = None
        self._waiting: deque[_Message] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def text(self, text: str) -> None:
        """Never called: only text models generate text."""
        raise NotImplementedError

    def part(self, part: _Message) -> None:
        """Adds a message. The caller must not change it afterwards.

        Raises:
            InferenceError: The memory budget has no room for it.
        """
        if not isinstance(part, EmbedResponse):  # Vectors are held before they are made.
            try:
                self.holding.add(part.ByteSize())
            except MemorySpentError as error:
                raise memory_spent() from error
        if isinstance(part, GenerateImageResponse) and part.HasField("partial_image"):
            self._drop_older_previews(part.partial_image.index)
        self._waiting.append(part)
        if self.on_filled is not None:
            self.on_filled(0)

    def take(self) -> _Message:
        """Takes the oldest message."""
        part = self._waiting.popleft()
        if not isinstance(part, EmbedResponse):
            self._taken += part.ByteSize()
        return part

    def sent(self) -> None:
        """Returns to the memory budget what the messages held that were taken."""
        self.holding.count(-self._taken)
        self._taken = 0

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
                    self.holding.count(-part.ByteSize())
