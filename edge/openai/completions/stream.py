"""POST /v1/completions: the response as server-sent events.

Chunks of plain text are rendered from templates, as chat/stream.py explains. The text head
(`data: {"id":...,"choices":[{"text":`) is the same for all prompts; the text tail holds the index
of the choice, so each prompt has its own.
"""

from __future__ import annotations

from edge.openai.completions.response import ChoiceLogprobs, CompletionOptions
from edge.openai.completions.schema import CompletionChoice
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

    __slots__ = (
        "_first_choice",
        "_logprobs",
        "_prompt_token_ids",
        "_stream",
        "_text_head",
        "_text_tail",
    )

    def __init__(self, stream: CompletionStream, number: int) -> None:
        self._stream = stream
        self._logprobs = ChoiceLogprobs(stream.options, number)
        self._first_choice = number * stream.options.n
        self._text_head = b""
        # Sent with the first chunk of each choice, by the choice's index.
        self._prompt_token_ids: dict[int, list[int]] = {}
        self._text_tail = b',"index":%d,"logprobs":null,"finish_reason":null}]%b' % (
            self._first_choice,
            stream.tail,
        )

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        admitted = admission(part)
        if admitted is not None:
            self._stream.usage.count(prompt=admitted.prompt_tokens)
        if part is not None and self._stream.options.token_ids:
            ids = list(part.prompt_token_ids)
            for index in range(self._stream.options.n):
                self._prompt_token_ids[self._first_choice + index] = ids
        self._stream.admit(admitted)
        self._text_head = self._stream.head + b'{"text":'
        return admitted

    def text(self, text: str) -> bytes:
        if self._stream.changing:
            return self._chunk(CompletionChoice(text=text, index=self._first_choice))
        return b"".join((self._text_head, encode(text), self._text_tail))

    def part(self, part: GenerateResponse) -> bytes:
        """Chunks of deltas, then of finishes; skips choices that are unknown or finished."""
        n, unfinished = self._stream.options.n, self._stream.unfinished
        if part.HasField("prompt_logprobs"):
            self._logprobs.take_prompt(part.prompt_logprobs)
        chunks = []
        for delta in part.deltas[:]:
            choice = self._first_choice + delta.index
            if delta.index < n and choice in unfinished:
                chunk = CompletionChoice(text=delta.text, index=choice)
                chunk.logprobs = self._logprobs.render(delta)
                self._stream.usage.count(completion=len(delta.token_ids))
                if self._stream.options.token_ids and delta.token_ids:
                    chunk.token_ids = list(delta.token_ids)
                if chunk.text or chunk.logprobs or chunk.token_ids:
                    chunks.append(self._chunk(chunk))
        for finish in part.finishes[:]:
            choice = self._first_choice + finish.index
            if finish.index < n and choice in unfinished:
                unfinished.discard(choice)
                reason = finish_reason(finish.reason)
                chunks.append(
                    self._chunk(CompletionChoice(text="", index=choice, finish_reason=reason))
                )
        if part.HasField("usage"):
            self._stream.usage.add(part.usage)
        return b"".join(chunks)

    def _chunk(self, chunk: CompletionChoice) -> bytes:
        if (ids := self._prompt_token_ids.pop(chunk.index, None)) is not None:
            chunk.prompt_token_ids = ids
        return b"".join((self._stream.head, encode(chunk), b"]", self._stream.tail))
