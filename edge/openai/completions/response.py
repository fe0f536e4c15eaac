"""Legacy completions: the contract's answer to one document or to events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from edge.openai import errors
from edge.openai.completions.schema import Completion, CompletionChoice
from edge.openai.text.logprobs import CompletionLogprobs, completion_logprobs, prompt_logprobs
from edge.openai.text.translator import UNKNOWN_FINGERPRINT, Identity, finish_reason
from edge.openai.text.usage import UsageSum
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse, Logprobs, TokenLogprob
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class CompletionOptions(Struct, frozen=True, gc=False):
    """What the request says about the form of its answer.

    Attributes:
        logprobs: Alternatives a token; None for no log probabilities.
        prompt_logprobs: Whether the prompt's are answered in vLLM's shape.
        prompt_characters: The length of each prompt; 0 for token ids.
    """

    model: str
    prompt_characters: Sequence[int]
    n: int = 1
    include_usage: bool = False
    logprobs: int | None = None
    echo: bool = False
    prompt_logprobs: bool = False


class Scores:
    """Log probabilities of the choices; an echoed prompt's tokens come before a choice's own."""

    def __init__(self, options: CompletionOptions) -> None:
        self._options = options
        self._prompts: dict[int, Sequence[TokenLogprob]] = {}
        self._offsets: dict[int, int] = {}

    def take_prompt(self, source: int, logprobs: Logprobs) -> None:
        self._prompts[source] = logprobs.tokens

    def lists(self, source: int, choice: int, delta: ChoiceDelta) -> CompletionLogprobs | None:
        top = self._options.logprobs
        if top is None:
            return None
        tokens: list[TokenLogprob] = []
        if choice not in self._offsets:
            echo = self._options.echo
            self._offsets[choice] = 0 if echo else self._options.prompt_characters[source]
            tokens += self._prompts.get(source, ()) if echo else ()
        tokens += delta.logprobs.tokens
        if not tokens:
            return None
        lists, self._offsets[choice] = completion_logprobs(tokens, top, self._offsets[choice])
        return lists


class CompletionResponse:
    """An ResponseTranslator for legacy completions."""

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._fingerprint = UNKNOWN_FINGERPRINT
        self._scores = Scores(options)
        self._usage = UsageSum()
        self._choices = [
            CompletionChoice(text="", index=choice)
            for choice in range(options.n * len(options.prompt_characters))
        ]
        # Joined once at the end: strings grow in quadratic time.
        self._texts: list[list[str]] = [[] for _ in self._choices]

    def admit(self, source: int, admitted: Admitted) -> None:  # noqa: ARG002 - the same for all
        """Takes the fingerprint."""
        self._fingerprint = admitted.system_fingerprint or self._fingerprint

    def text(self, source: int, text: str) -> None:
        """Adds to the source's first choice."""
        self._texts[source * self._options.n].append(text)

    def part(self, source: int, response: GenerateResponse) -> None:
        """Adds deltas, then finishes; choices unknown or finished are passed over."""
        if response.HasField("prompt_logprobs"):
            self._take_prompt(source, response.prompt_logprobs)
        for delta in response.deltas:
            choice = self._choice(source, delta.index)
            if choice is not None:
                self._texts[choice.index].append(delta.text)
                lists = self._scores.lists(source, choice.index, delta)
                if lists and choice.logprobs:
                    choice.logprobs.extend(lists)
                elif lists:
                    choice.logprobs = lists
        for finish in response.finishes:
            choice = self._choice(source, finish.index)
            if choice is not None:
                choice.finish_reason = finish_reason(finish.reason)
        if response.HasField("usage"):
            self._usage.add(response.usage)

    def result(self) -> bytes:
        """The document."""
        for choice, texts in zip(self._choices, self._texts, strict=True):
            if choice.finish_reason is None:
                raise errors.internal_error()
            choice.text = "".join(texts)
        return _encode(
            Completion(
                id=self._identity.completion_id,
                created=self._identity.created,
                model=self._options.model,
                system_fingerprint=self._fingerprint,
                choices=self._choices,
                usage=self._usage.total(),
            )
        )

    def _choice(self, source: int, index: int) -> CompletionChoice | None:
        if index >= self._options.n:
            return None
        choice = self._choices[source * self._options.n + index]
        return None if choice.finish_reason else choice

    def _take_prompt(self, source: int, logprobs: Logprobs) -> None:
        self._scores.take_prompt(source, logprobs)
        if not self._options.prompt_logprobs:
            return
        rendered = prompt_logprobs(logprobs)
        for index in range(self._options.n):
            self._choices[source * self._options.n + index].prompt_logprobs = rendered
