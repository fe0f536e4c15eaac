"""POST /v1/completions: the response as server-sent events.

Chunks of plain text are rendered from templates, as chat/stream.py explains. The text head
(`data: {"id":...,"choices":[{"text":`) is the same for all prompts; the text tail holds the index
of the choice, so each prompt has its own.
"""

from __future__ import annotations

from edge.openai.completions.response import ChoiceLogprobs, CompletionOptions
from edge.openai.completions.schema import CompletionChoice
from edge.openai.text.logprobs import CompletionLogprobs
from edge.openai.text.translator import Identity, TextStream, admission, encode, finish_reason
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.usage_pb2 import Admitted


class CompletionStream(TextStream[CompletionOptions]):
    """The events of one request; each prompt is a source, and choice = prompt * n + sample."""

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        super().__init__(options, identity, choices=options.n * len(options.prompt_characters))

    def source(self, number: int) -> _PromptStream:
        return _PromptStream(self, number)

    def admit(self, admitted: Admitted | None) -> None:
        """Renders the head at the first call; all prompts run on one model."""
        if not self.head:
            self.render_head("text_completion", admitted)

    def opening(self) -> bytes:
        """Returns b"": chunks of completions have no role."""
        self.admit(None)
        return b""


class _PromptStream:
    """The chunks of one prompt's choices."""

    __slots__ = ("_first_choice", "_logprobs", "_stream", "_text_head", "_text_tail")

    def __init__(self, stream: CompletionStream, number: int) -> None:
        self._stream = stream
        self._logprobs = ChoiceLogprobs(stream.options, number)
        self._first_choice = number * stream.options.n
        self._text_head = b""
        self._text_tail = b',"index":%d,"logprobs":null,"finish_reason":null}]%b' % (
            self._first_choice,
            stream.tail,
        )

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        admitted = admission(part)
        self._stream.admit(admitted)
        self._text_head = self._stream.head + b'{"text":'
        return admitted

    def text(self, text: str) -> bytes:
        return b"".join((self._text_head, encode(text), self._text_tail))

    def part(self, part: GenerateResponse) -> bytes:
        """Chunks of deltas, then of finishes; skips choices that are unknown or finished."""
        n, unfinished = self._stream.options.n, self._stream.unfinished
        if part.HasField("prompt_logprobs"):
            self._logprobs.take_prompt(part.prompt_logprobs)
        chunks = []
        for delta in part.deltas:
            choice = self._first_choice + delta.index
            if delta.index < n and choice in unfinished:
                logprobs = self._logprobs.render(delta)
                if delta.text or logprobs:
                    chunks.append(self._chunk(delta.text, choice, logprobs, None))
        for finish in part.finishes:
            choice = self._first_choice + finish.index
            if finish.index < n and choice in unfinished:
                unfinished.discard(choice)
                chunks.append(self._chunk("", choice, None, finish_reason(finish.reason)))
        if part.HasField("usage"):
            self._stream.usage.add(part.usage)
        return b"".join(chunks)

    def _chunk(
        self, text: str, choice: int, logprobs: CompletionLogprobs | None, finish: str | None
    ) -> bytes:
        chunk = CompletionChoice(text=text, index=choice, logprobs=logprobs, finish_reason=finish)
        return b"".join((self._stream.head, encode(chunk), b"]", self._stream.tail))
