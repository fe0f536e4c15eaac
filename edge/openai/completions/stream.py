"""POST /v1/completions: the response as server-sent events.

Chunks of plain text are rendered from templates, as chat/stream.py explains. The text head
(`data: {"id":...,"choices":[{"text":`) is the same for all prompts; the text tail holds the index
of the choice, so each prompt has its own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edge.openai import errors, sse
from edge.openai.completions.response import ChoiceLogprobs, CompletionOptions
from edge.openai.completions.schema import CompletionChoice
from edge.openai.text.logprobs import CompletionLogprobs
from edge.openai.text.translator import UNKNOWN_FINGERPRINT, Identity, UsageSum, finish_reason
from edge.openai.translator import StreamTranslator
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class CompletionStream(StreamTranslator[GenerateResponse]):
    """The events of one request; each prompt is a source, and choice = prompt * n + sample.

    Attributes:
        options: See CompletionOptions.
        usage: Tokens of all prompts so far.
        unfinished: Choices without a finish reason yet.
        head: The beginning of every chunk, up to `"choices":[`; b"" before the first admission.
        tail: The end of every chunk, after the list of choices.
    """

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        self.options = options
        self.usage = UsageSum()
        self.unfinished = set(range(options.n * len(options.prompt_characters)))
        self.head = b""
        self.tail = (b',"usage":null}' if options.include_usage else b"}") + sse.TAIL
        self._identity = identity

    def source(self, number: int) -> _PromptStream:
        """The translator of one prompt."""
        return _PromptStream(self, number)

    def render_head(self, fingerprint: str) -> None:
        """Renders what all chunks share; all prompts run on one model, so the first call decides.

        Args:
            fingerprint: The service's system_fingerprint; may be empty.
        """
        if self.head:
            return
        shared = {
            "id": self._identity.completion_id,
            "object": "text_completion",
            "created": self._identity.created,
            "model": self.options.model,
            "system_fingerprint": fingerprint or UNKNOWN_FINGERPRINT,
        }
        self.head = sse.HEAD + _encode(shared)[:-1] + b',"choices":['

    def opening(self) -> bytes:
        """Nothing: chunks of completions have no role."""
        self.render_head("")
        return b""

    def closing(self) -> bytes:
        """The usage chunk if it was asked for, and [DONE].

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        if self.unfinished:
            raise errors.internal_error()
        if not self.options.include_usage:
            return sse.DONE
        return b"".join((self.head, b'],"usage":', self.usage.json(), b"}", sse.TAIL, sse.DONE))


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
        admitted = part.admitted if part is not None and part.HasField("admitted") else None
        self._stream.render_head("" if admitted is None else admitted.system_fingerprint)
        self._text_head = self._stream.head + b'{"text":'
        return admitted

    def text(self, text: str) -> bytes:
        return b"".join((self._text_head, _encode(text), self._text_tail))

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
        return b"".join((self._stream.head, _encode(chunk), b"]", self._stream.tail))
