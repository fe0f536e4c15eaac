"""POST /v1/completions: output as server-sent events."""

from __future__ import annotations

from typing import Final

import msgspec

from edge.openai import errors, sse
from edge.openai.completions.response import CompletionOptions, Scores
from edge.openai.completions.schema import CompletionChoice
from edge.openai.text.logprobs import CompletionLogprobs
from edge.openai.text.translator import UNKNOWN_FINGERPRINT, Identity, finish_reason
from edge.openai.text.usage import UsageSum
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class CompletionStream:
    """A StreamTranslator for legacy completions."""

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._head = b""
        self._text_head = b""
        self._tail = (b',"usage":null}' if options.include_usage else b"}") + sse.TAIL
        self._text_tails: list[bytes] = []
        self._scores = Scores(options)
        self._usage = UsageSum()
        self._unfinished = set(range(options.n * len(options.prompt_characters)))

    def admit(self, source: int, admitted: Admitted) -> None:  # noqa: ARG002 - the same for all
        """Renders what all chunks share, from the first source: all run on the same model."""
        if self._head:
            return
        shared = {
            "id": self._identity.completion_id,
            "object": "text_completion",
            "created": self._identity.created,
            "model": self._options.model,
            "system_fingerprint": admitted.system_fingerprint or UNKNOWN_FINGERPRINT,
        }
        self._head = sse.HEAD + _encode(shared)[:-1] + b',"choices":['
        self._text_head = self._head + b'{"text":'
        self._text_tails = [
            b',"index":%d,"logprobs":null,"finish_reason":null}]%b' % (choice, self._tail)
            for choice in range(len(self._unfinished))
        ]

    def start(self) -> bytes:
        """Nothing: legacy chunks have no roles."""
        self.admit(0, Admitted())
        return b""

    def text(self, source: int, text: str) -> bytes:
        """One chunk of the source's first choice."""
        return b"".join(
            (self._text_head, _encode(text), self._text_tails[source * self._options.n])
        )

    def part(self, source: int, response: GenerateResponse) -> bytes:
        """Chunks of deltas, then of finishes; choices unknown or finished are passed over."""
        if response.HasField("prompt_logprobs"):
            self._scores.take_prompt(source, response.prompt_logprobs)
        chunks = []
        for delta in response.deltas:
            choice = source * self._options.n + delta.index
            if delta.index < self._options.n and choice in self._unfinished:
                lists = self._scores.lists(source, choice, delta)
                if delta.text or lists:
                    chunks.append(self._chunk(delta.text, choice, lists, None))
        for finish in response.finishes:
            choice = source * self._options.n + finish.index
            if finish.index < self._options.n and choice in self._unfinished:
                self._unfinished.discard(choice)
                chunks.append(self._chunk("", choice, None, finish_reason(finish.reason)))
        if response.HasField("usage"):
            self._usage.add(response.usage)
        return b"".join(chunks)

    def end(self) -> bytes:
        """The usage chunk where it was asked for, and [DONE]."""
        if self._unfinished:
            return sse.error_event(errors.internal_error())
        if not self._options.include_usage:
            return sse.DONE
        return b"".join((self._head, b'],"usage":', self._usage.json(), b"}", sse.TAIL, sse.DONE))

    def _chunk(
        self, text: str, choice: int, lists: CompletionLogprobs | None, finish: str | None
    ) -> bytes:
        piece = CompletionChoice(text=text, index=choice, logprobs=lists, finish_reason=finish)
        return b"".join((self._head, _encode(piece), b"]", self._tail))
